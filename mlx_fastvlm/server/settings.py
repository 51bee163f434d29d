"""What the server is told at its start, checked before the model loads."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import UsageError, require, require_whole
from .dialect.limits import Limits


@dataclass(frozen=True)
class ServerSettings(Limits):
    """The server's limits and permissions: those of requests, and its own.

    Attributes:
        model: what is served, as :func:`mlx_fastvlm.load` takes it.
        name: what clients call it; by default the hub id, or the folder's name.
        host, port: where it listens; port 0 takes any that is free.
        api_keys: a request must bring one of them, if there are any; a host other than loopback needs one.
        max_rows: answers that run at once.
        max_queue: requests that are there beyond ``max_rows``, waiting for their turn; further ones are refused with
            status 429.
        max_connections: at once; beyond, the one that has been idle longest is closed.
        max_bodies: bytes of all requests that are not prepared yet; one client's may take half of it.
        max_pixels: of an image or a video's frame as it comes, before it is decoded.
        allow_origins: origins of pages, such as ``https://chat.example``, that may use the server from a browser.
        allow_hosts: further names by which the server may be addressed.
        decode_threads: requests that are parsed, and whose images are decoded, at a time.
        head_timeout: seconds in which a connection must send the head of a request.
        body_timeout: seconds in which a request's body must come.
        write_timeout: seconds for which a client may read nothing of what it is sent.
        request_timeout: seconds from a request's head to the end of its answer.
        keep_alive: seconds between comments in a stream that has nothing else to say.
        hang_limit: seconds that a step may take before the server counts as not ready.
        exit_after: further seconds, after which the process ends with an error, so that it is started again.
        drain: seconds in which answers may still be finished after SIGTERM.
        log_level: "debug", "info", "warning" or "error".

    Raises:
        UsageError: for a value that can't be.
    """

    model: str = "demo"
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    max_rows: int = 16
    max_queue: int = 64
    max_connections: int = 512
    max_bodies: int = 512 * 10**6
    max_pixels: int = 50_000_000
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    decode_threads: int = 4
    head_timeout: float = 15.0
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    request_timeout: float = 600.0
    keep_alive: float = 5.0
    hang_limit: float = 120.0
    exit_after: float = 60.0
    drain: float = 30.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                require_whole(field.name, value)
                least = 0 if field.name in ("port", "max_queue") else 1
                require(value >= least, f"{field.name} must be at least {least}", value)
            elif field.type == "float":
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                require(number and 0 < value < math.inf, f"{field.name} must be a number of seconds above 0", value)
        require(self.port <= 65535, "port must be at most 65535", self.port)
        require(self.log_level in LOG_LEVELS, f"log_level must be one of {', '.join(LOG_LEVELS)}", self.log_level)
        self._check_keys()
        self._check_origins()
        if self.image_root is not None and not self.image_root.is_dir():
            raise UsageError(f"image_root {self.image_root} is not a folder; give one that holds images.")

    def _check_keys(self) -> None:
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError("An API key must have at least 8 visible ASCII characters and no spaces.")
        if not self.api_keys and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, so the server needs a key: set FASTVLM_API_KEY or "
                "give --api-key, or listen on 127.0.0.1."
            )

    def _check_origins(self) -> None:
        for origin in self.allow_origins:
            scheme, mark, rest = origin.partition("://")
            if scheme not in ("http", "https") or not mark or not rest or "/" in rest or "*" in rest:
                raise UsageError(
                    f"An allowed origin must look like https://chat.example or http://localhost:3000, got {origin!r}."
                )
        for host in self.allow_hosts:
            if not host or any(character in host for character in "/*@ ") or "://" in host:
                raise UsageError(f"An allowed host must be a name such as mac.local, got {host!r}.")

    @property
    def served_name(self) -> str:
        """The model's id for clients."""
        folder = Path(self.model).expanduser()
        return self.name or (folder.resolve().name if folder.is_dir() else self.model)


LOG_LEVELS = ("debug", "info", "warning", "error")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
