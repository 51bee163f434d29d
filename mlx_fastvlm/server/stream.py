"""Answers as server-sent events, and what ends the wait for them: clients that leave, and limits of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .body import ClientLeft
from .dialect.errors import timed_out
from .responses import HEADERS, to_json
from .work import End, Event

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from .dialect.ask import Chunk

HEAD = {**HEADERS, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}  # this for nginx
WAITING = b": waiting\n\n"  # a comment, which clients pass over
DONE = b"data: [DONE]\n\n"


@contextmanager
def watched(inbox: asyncio.Queue[Event], receive: Receive, left: float, limit: float) -> Iterator[None]:
    """While the block runs, a client that leaves, and the end of its time, come into the inbox as the end.

    Args:
        left: seconds that the request has still.
        limit: seconds that it had in all.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_later(left, inbox.put_nowait, End(timed_out(limit)))
    task = loop.create_task(_watch(inbox, receive))
    try:
        yield
    finally:
        timer.cancel()
        task.cancel()


async def _watch(inbox: asyncio.Queue[Event], receive: Receive) -> None:
    """uvicorn tells of a closed connection only to whoever waits for it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.put_nowait(End(ClientLeft()))


async def events(inbox: asyncio.Queue[Event]) -> AsyncIterator[list[Event]]:
    """What there is, as soon as there is something, until the end."""
    while True:
        some = [await inbox.get()]
        while not inbox.empty():
            some.append(inbox.get_nowait())
        ended = next((place for place, event in enumerate(some) if isinstance(event, End)), None)
        yield some if ended is None else some[: ended + 1]
        if ended is not None:
            return


class EventStream:
    """A response of server-sent events. Its head goes with the first of them, so that errors before have a status.

    Args:
        keep_alive: seconds without an event after which there is a comment.

    Attributes:
        begun: whether its head has been sent, so that an error has to come inside of it.
    """

    def __init__(self, send: Send, keep_alive: float) -> None:
        self._send, self._keep_alive = send, keep_alive
        self._lock = asyncio.Lock()
        self._sent = asyncio.get_running_loop().time()
        self.begun = False

    async def write(self, chunks: list[Chunk]) -> None:
        """Send chunks of the dialect, in one piece."""
        if chunks:
            await self._write(b"".join(map(_event, chunks)))

    async def close(self, done: bool) -> None:
        """End the response, with OpenAI's last line where the dialect has it."""
        if done:
            await self._write(DONE)
        await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, data: bytes) -> None:
        async with self._lock:
            if not self.begun:
                self.begun = True
                headers = [(name.encode(), value.encode()) for name, value in HEAD.items()]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sent = asyncio.get_running_loop().time()

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """While the block runs, proxies and clients hear something at least every ``keep_alive`` seconds."""
        task = asyncio.get_running_loop().create_task(self._comment())
        try:
            yield
        finally:
            task.cancel()

    async def _comment(self) -> None:
        while True:
            quiet = asyncio.get_running_loop().time() - self._sent
            if quiet >= self._keep_alive:
                await self._write(WAITING)
            else:
                await asyncio.sleep(self._keep_alive - quiet)


def _event(chunk: Chunk) -> bytes:
    name = chunk.get("type")
    head = b"" if not isinstance(name, str) else f"event: {name}\n".encode()
    return head + b"data: " + to_json(chunk) + b"\n\n"
