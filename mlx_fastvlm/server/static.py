"""GET /: the page, plain files that need nothing from anywhere else, and headers that keep browsers to that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

    Endpoint = Callable[[Request], Awaitable[Response]]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Images are data URIs, and blobs while they are read; scripts and styles are files of this server, never in the page.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-cache",  # else a browser could mix the files of two versions
}


def pages() -> dict[str, Endpoint]:
    """The page's files by their addresses, read once: no address can lead to another file."""
    files = [file for file in (resources.files(__package__) / "page").iterdir() if _suffix(file.name) in TYPES]
    return {_address(file.name): _endpoint(file.read_bytes(), TYPES[_suffix(file.name)]) for file in files}


def _address(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _endpoint(data: bytes, kind: str) -> Endpoint:
    async def page(_: Request) -> Response:
        return Response(data, headers={**HEADERS, "content-type": kind})

    return page
