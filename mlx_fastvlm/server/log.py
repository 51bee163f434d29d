"""One JSON line a request: who, what for, how large and how long. Never what was asked or answered, and no key."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("mlx_fastvlm.server")


@dataclass
class Record:
    """What is noted about a request on its way.

    Attributes:
        endpoint: the path, for addresses that there are; else "other": what strangers make up may hold anything.
        client: the address, as the connection has it.
        status: None where the client had left before there was one.
        queued, first, total: seconds in the queue, to the first token, and in all.
        code: OpenAI's ``code`` of the error that it ended with, or its ``type``.
    """

    endpoint: str = "other"
    method: str = ""
    client: str = ""
    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    start: float = field(default_factory=time.perf_counter)
    status: int | None = None
    stream: bool = False
    cancelled: bool = False
    body_bytes: int = 0
    images: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    queued: float | None = None
    first: float | None = None
    code: str | None = None

    def write(self) -> None:
        """Log it, now that it has ended; what only probes ask for is no news."""
        level = logging.DEBUG if self.endpoint in QUIET and self.status == 200 else logging.INFO
        log.log(level, "request", extra={"fields": self.fields()})

    def fields(self) -> dict[str, Any]:
        """Of the log line, those that say something."""
        fields: dict[str, Any] = {
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "endpoint": self.endpoint,
            "status": self.status,
            "total_s": round(time.perf_counter() - self.start, 4),
        }
        for name in ("queued", "first"):
            if (seconds := getattr(self, name)) is not None:
                fields[f"{name}_s"] = round(seconds, 4)
        names = ("stream", "cancelled", "body_bytes", "images", "answers", "prompt_tokens", "cached_tokens")
        return fields | {name: value for name in (*names, "answer_tokens", "code") if (value := getattr(self, name))}


QUIET = ("/health", "/ready", "/metrics")


class Recorder:
    """Makes a record of each request, gives the client its id, and hands it on when the request has ended.

    What no handler has caught ends here, so that nobody logs it with a client's words in it.
    """

    def __init__(self, app: ASGIApp, count: Callable[[Record], None]) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = Record(method=scope["method"], client=scope["client"][0] if scope["client"] else "")
        scope.setdefault("state", {})["record"] = record

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", record.id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            log.error("a request failed", extra={"fields": {"id": record.id, "where": where(error)}})
        finally:
            record.write()
            self._count(record)


class JsonLines(logging.Formatter):
    """A record as a JSON object in one line; strangers' line breaks and control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))[-4000:]
        return json.dumps(line)


def where(error: BaseException) -> str:
    """An error's type and the lines that it came through, without its message, which may be a client's words."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join([type(error).__name__, *(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))])


def set_up(level: str) -> None:
    """Let the server's lines, and uvicorn's, go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("mlx_fastvlm.server", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    # Its own words about each start, stop and connection are said here already, or are about strangers' bad requests.
    logging.getLogger("uvicorn").setLevel("ERROR")
