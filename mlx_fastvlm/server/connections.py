"""Connections that send nothing, or read nothing, don't stay: what uvicorn leaves to a proxy in front."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .dialect.errors import RequestError
from .responses import to_json

if TYPE_CHECKING:
    from .settings import ServerSettings


def guarded(settings: ServerSettings) -> type[H11Protocol]:
    """uvicorn's protocol for HTTP/1.1, with limits: for its option ``http``."""

    class Guarded(_Guarded):
        limits = settings

    return Guarded


class _Guarded(H11Protocol):
    """
    Attributes:
        silent_since: when the other side was last due to send, in the loop's seconds; None while the server is due.
    """

    limits: ServerSettings

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.silent_since: float | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= self.limits.max_connections and not self._make_room():
            transport.abort()
        super().connection_made(transport)
        self._watch()

    def _make_room(self) -> bool:
        """Close the connection that has been silent longest, of whoever has most of them; False if none is silent."""
        silent = [other for other in self.connections if isinstance(other, _Guarded) and other.silent_since is not None]
        if not silent:
            return False
        each = Counter(other.address for other in silent)
        longest = min(silent, key=lambda other: (-each[other.address], other.silent_since))
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_silence()  # between two requests, uvicorn's own timer runs

    def _watch(self) -> None:
        """Time the other side while it sends a head, or a body that nobody wants any more."""
        self._note_silence()
        if not self._answered:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout, self.transport.abort)

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _note_silence(self) -> None:
        if not self._answered and not self.cycle.more_body:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = self.loop.time()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP, or has a head of more than 64 KB."""
        error = RequestError("This is not a valid HTTP request, or its head is too large.", code="invalid_http")
        body = to_json(error.body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
