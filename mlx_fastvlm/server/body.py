"""A request's body, read piece by piece against limits of size and time before anything is made of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .dialect.errors import RequestError, queue_full, too_large, too_slow

if TYPE_CHECKING:
    from starlette.types import Receive

    from .settings import ServerSettings


Headers = list[tuple[bytes, bytes]]  # as ASGI has them, names in lower case


class ClientLeft(Exception):
    """The connection was closed by the other side."""


class Bodies:
    """The bodies that are in memory. All together are bounded, and those of one client by half of that."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._held: Counter[str] = Counter()

    @contextmanager
    def reading(self, client: str) -> Iterator[Body]:
        """A body that counts until it is released, or the block ends."""
        body = Body(self, client)
        try:
            yield body
        finally:
            body.release()

    def take(self, client: str, count: int) -> None:
        """Make room for so many bytes more, or ``RequestError``."""
        most = max(self._settings.max_bodies, 2 * self._settings.max_body)
        if self._held.total() + count > most or self._held[client] + count > most // 2:
            raise queue_full(retry_after=1)
        self._held[client] += count

    def give_back(self, client: str, count: int) -> None:
        self._held[client] -= count
        if not self._held[client]:
            del self._held[client]


class Body:
    """One request's body.

    Attributes:
        held: how many of its bytes are in memory.
    """

    def __init__(self, bodies: Bodies, client: str) -> None:
        self._bodies, self._client, self.held = bodies, client, 0

    async def read(self, receive: Receive, headers: Headers, settings: ServerSettings) -> bytes:
        """All of it.

        Raises:
            RequestError: it is too large (413), too slow (408), or there are too many at once (429).
            ClientLeft: before it was whole.
        """
        if _declared(headers) > settings.max_body:
            raise too_large(settings.max_body)
        try:
            return await asyncio.wait_for(self._read(receive, settings.max_body), settings.body_timeout)
        except asyncio.TimeoutError:
            raise too_slow(settings.body_timeout) from None

    def release(self) -> None:
        """It is not in memory any more."""
        self._bodies.give_back(self._client, self.held)
        self.held = 0

    async def _read(self, receive: Receive, limit: int) -> bytes:
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            piece = message.get("body", b"")
            if self.held + len(piece) > limit:
                raise too_large(limit)
            self._bodies.take(self._client, len(piece))
            self.held += len(piece)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)


def _declared(headers: Headers) -> int:
    """The length that the head announces; 0 where it does not."""
    lengths = [value for name, value in headers if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def wants_json(headers: Headers) -> None:
    """``RequestError`` unless the body is announced as JSON.

    A page of another origin can send a form or plain text without asking first, but never this.
    """
    kinds = [value for name, value in headers if name == b"content-type"]
    if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != b"application/json":
        raise RequestError("Send the body as JSON, with the header Content-Type: application/json.", status=415)
