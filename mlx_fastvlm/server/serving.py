"""Start, run and stop: the model first, then the socket; at the end what runs is finished, then the worker goes."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from . import log as lines
from .app import make_app
from .connections import guarded
from .service import Service

if TYPE_CHECKING:
    from .settings import ServerSettings
    from .worker import Load

log = logging.getLogger("mlx_fastvlm.server")

KEEP_ALIVE = 30  # seconds that a connection may rest between two requests, longer than clients keep it
# Seconds after which a thread that computes in Python lets another one in. The loop lets go of Python's lock with every
# socket that it reads or writes, and then waits for it behind the worker and the threads that prepare: at Python's own
# 5 ms a time, 200 requests at once held up /health for a quarter of a second.
SWITCH = 0.0005
FILES = 256  # that are open beside connections
GRACE = 5.0  # seconds for clients to be told, and for the worker to end, once the time to drain is over


def serve(settings: ServerSettings, load: Load) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Raises:
        ValueError, OSError: the model can't be loaded, or the address is taken; before anything listens.
    """
    lines.set_up(settings.log_level)
    sys.setswitchinterval(SWITCH)
    allow_files(settings.max_connections + FILES)
    with bound(settings.host, settings.port) as listener:
        service = Service(settings, load)
        service.worker.start()
        try:
            service.worker.wait_until_loaded()
            Server(service).run([listener])
        finally:
            _end(service)


def allow_files(count: int) -> None:
    """Let the process open so many files, as far as the system allows: launchd and many shells begin with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet; ``OSError`` where it can't have that."""
    try:
        kind, address = _resolve(host, port)
        # Named, or asyncio takes its connections for others than TCP's, and leaves Nagle's delay of 40 ms in them.
        listener = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        raise OSError(
            f"The server can't listen on {host} port {port} ({error.strerror}); take another --port."
        ) from None


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0], found[0][4]


def _end(service: Service) -> None:
    """Let the worker go. Python can't end while it computes, so where it does not hear, nothing else is waited for."""
    if not service.worker.stop(0.5 if service.worker.loading else GRACE):
        log.critical("the worker did not end; the process ends without it")
        sys.stderr.flush()
        os._exit(1)


class Server(uvicorn.Server):
    """uvicorn with limits for connections, and with an end of its own.

    The first signal stops it from accepting, and lets it finish what runs, for ``drain`` seconds at most; then clients
    are told. The second ends it at once.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                make_app(service),
                host=settings.host,
                port=settings.port,
                loop="asyncio",
                http=guarded(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # else whoever asks can claim to be another address
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(settings.drain + GRACE),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            told = {"host": host, "port": port, "model": self._service.settings.served_name}
            log.info("ready", extra={"fields": told})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """For signals. uvicorn's own would raise them again at the end, and the process would not end with 0."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = self._service.stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._service.settings.drain, self._service.end_all)
