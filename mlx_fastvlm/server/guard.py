"""Who may ask at all: the Host, Origin and key of a request, before anything of it is read.

A page that some browser shows can send requests to a server on the same machine. It can't choose their Host header, nor
leave out Origin: so a name that is not this server's own, or a page that was not allowed, is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

from starlette.responses import Response

from .dialect.errors import RequestError, forbidden, unauthorized
from .responses import error_response
from .settings import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .body import Headers
    from .settings import ServerSettings

# What needs no key: whether the server is alive and ready, for whoever watches it, and the page, which holds nothing
# and asks for the key. The figures of /metrics need one: they tell who uses the server how much, and when.
OPEN = ("/", "/health", "/ready")
OPEN_FOLDER = "/page/"


class Guard:
    """Lets through what may ask; answers the rest, and browsers' questions about other origins (CORS), itself."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._origins = frozenset(origin.lower() for origin in settings.allow_origins)
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = {"localhost", "127.0.0.1", "::1", *map(str.lower, settings.allow_hosts)}
        self._any_address = False
        if _is_unspecified(settings.host):
            self._any_address = True  # another site's name can be made to lead here, an address can't
        elif not is_loopback(settings.host):
            self._hosts.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            origin = self._check(scope)
        except RequestError as error:
            return await error_response(error)(scope, receive, send)
        if origin is None:
            return await self._app(scope, receive, send)
        app = _preflight() if scope["method"] == "OPTIONS" else self._app
        await app(scope, receive, _with_origin(send, origin))

    def _check(self, scope: Scope) -> bytes | None:
        """The other origin that may have the answer; None if none asks."""
        host = self._check_host(scope["headers"])
        origin = self._check_origin(scope["headers"], host)
        preflight = origin is not None and scope["method"] == "OPTIONS"  # browsers send no key with it
        if not preflight and not _is_open(scope):
            scope["state"]["key"] = self._check_key(scope["headers"])
        return origin

    def _check_host(self, headers: Headers) -> bytes:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._knows(hosts[0].decode("latin-1").lower()):
            raise RequestError(
                "The request is for another host than this server; use its own address, or name the host with "
                "--allow-host.",
                code="unknown_host",
                status=421,
            )
        return hosts[0].lower()

    def _knows(self, host: str) -> bool:
        name = _without_port(host)
        return name in self._hosts or (self._any_address and _is_address(name))

    def _check_origin(self, headers: Headers, host: bytes) -> bytes | None:
        origins = [value for name, value in headers if name == b"origin"]
        if not origins:
            return None
        origin = origins[0].lower()
        if len(origins) == 1 and origin in (b"http://" + host, b"https://" + host):
            return None
        if len(origins) == 1 and origin.decode("latin-1") in self._origins:
            return origins[0]
        raise forbidden("Pages of other origins may not use this server; name theirs with --allow-origin.")

    def _check_key(self, headers: Headers) -> int:
        """Which of the keys the request brings; 0 where none is needed."""
        if not self._keys:
            return 0
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Each is compared, and in a time that tells nothing about it.
        equal = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(equal):
            raise unauthorized()
        return equal.index(True)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith(OPEN_FOLDER))


def _without_port(host: str) -> str:
    """Of a Host header, the name; an IPv6 address without its brackets."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return name if bracket and (not port or (port[0] == ":" and port[1:].isdigit())) else ""
    name, colon, port = host.partition(":")
    return name if not colon or port.isdigit() else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def _is_unspecified(host: str) -> bool:
    return host == "" or (_is_address(host) and ipaddress.ip_address(host).is_unspecified)


def _with_origin(send: Send, origin: bytes) -> Send:
    async def with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_allowing(origin)]}
        await send(message)

    return with_origin


def _allowing(origin: bytes) -> Headers:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    ]


def _preflight() -> Response:
    headers = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, content-type",
        "access-control-max-age": "600",
    }
    return Response(status_code=204, headers=headers)
