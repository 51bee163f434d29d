"""A request's way: body -> what it asks -> prepared in the pool -> the queue -> answers, whole or as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..generation.choices import DecisionReading
from ..generation.options import GenerationOptions
from .body import ClientLeft, wants_json
from .dialect.errors import RequestError, from_answering, from_preparing, timed_out, unavailable
from .dialect.fields import parse
from .dialect.images import opened
from .log import Record, where
from .responses import error_response, json_response
from .stream import EventStream, events, watched
from .work import End, Question, Said, Work, WorkerEnded

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ..generation.engine import Engine
    from .dialect.ask import Ask, Served, Writer
    from .service import Service
    from .work import Event

log = logging.getLogger("mlx_fastvlm.server")


@dataclass(frozen=True)
class Dialect:
    """How one endpoint speaks.

    Attributes:
        read: a body -> what it asks.
        writer: of the answers to it.
        body: the JSON schema of what it reads.
        answer: the ``object`` that a whole answer calls itself.
        summary: what it is for.
    """

    read: Callable[[dict[str, Any], Served], Ask]
    writer: Callable[[Ask, Served], Writer]
    body: dict[str, Any]
    answer: str
    summary: str


class Asking:
    """The application behind an endpoint that answers."""

    def __init__(self, path: str, dialect: Dialect, service: Service) -> None:
        self._path, self._dialect, self._service = path, dialect, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["state"]["record"]
        record.endpoint = self._path
        client = self._client(scope)
        try:
            await _Request(self._dialect, self._service, record, client).answer(scope, receive, send)
        except ClientLeft:
            record.cancelled = True
        except RequestError as error:
            record.code = error.code or error.kind
            await error_response(error)(scope, receive, send)

    def _client(self, scope: Scope) -> str:
        """Who takes turns: the keys where there are several, else the addresses."""
        if len(self._service.settings.api_keys) > 1:
            return f"key {scope['state']['key']}"
        return scope["client"][0] if scope["client"] else ""


@dataclass
class _Request:
    dialect: Dialect
    service: Service
    record: Record
    client: str

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            RequestError: before anything was sent.
            ClientLeft: nobody is there to send it to.
        """
        service, limit = self.service, self.service.settings.request_timeout
        served = service.served
        service.check()
        wants_json(scope["headers"])
        with service.bodies.reading(self.client) as body:
            data = await body.read(receive, scope["headers"], service.settings)
            self.record.body_bytes = len(data)
            inbox: asyncio.Queue[Event] = asyncio.Queue()
            left = limit - (time.perf_counter() - self.record.start)
            with service.counted(self.client), watched(inbox, receive, left, limit):
                ask, questions = await self._prepare(data, served, left)
                del data
                body.release()
                if not inbox.empty():  # whoever left meanwhile gets no row
                    raise _for_client(inbox.get_nowait().error)  # type: ignore[union-attr, arg-type]  # only ends come
                work = Work(self.client, questions, self.record.start, inbox)
                with service.queued(work):
                    await self._answer(ask, work, self.dialect.writer(ask, served), (scope, receive, send))

    async def _prepare(self, data: bytes, served: Served, left: float) -> tuple[Ask, list[Question]]:
        engine = self.service.worker.engine
        if engine is None:
            raise unavailable("The server has stopped answering; try again soon.", retry_after=5)
        read = self.dialect.read
        try:
            ask, questions = await self.service.prepare(self.client, lambda: prepare(data, read, engine, served), left)
        except asyncio.TimeoutError:
            raise timed_out(self.service.settings.request_timeout) from None
        self.record.images = sum(len(question.request.images) for question in questions)
        self.record.answers = sum(question.n for question in questions)
        self.record.stream = ask.stream
        return ask, questions

    async def _answer(self, ask: Ask, work: Work, writer: Writer, asgi: tuple[Scope, Receive, Send]) -> None:
        scope, receive, send = asgi
        notes = _Notes(self.record, self.service, work)
        if ask.stream:
            await _stream(work, writer, notes, EventStream(send, self.service.settings.keep_alive))
            return
        async for some in events(work.inbox):
            notes.note(some)
            _write(writer, some)
        await json_response(writer.whole())(scope, receive, send)


async def _stream(work: Work, writer: Writer, notes: _Notes, stream: EventStream) -> None:
    """Send the answers as they come; an error that comes once the response has begun goes into it."""
    chunks = writer.begin()  # which go with the first others
    with stream.kept_alive():
        try:
            async for some in events(work.inbox):
                notes.note(some)
                chunks += _write(writer, some)
                await stream.write(chunks)
                chunks = []
            await stream.write(writer.end())
        except RequestError as error:
            if not stream.begun:
                raise
            notes.record.code = error.code or error.kind
            await stream.write([*chunks, *writer.fail(error)])
    await stream.close(writer.done)


def _write(writer: Writer, some: list[Event]) -> list[dict[str, Any]]:
    """The chunks of events; raises what ended the request before its time."""
    chunks: list[dict[str, Any]] = []
    for event in some:
        if isinstance(event, Said):
            chunks += writer.piece(event.index, event.response)
        elif event.error is not None:
            raise _for_client(event.error)
        else:
            for decision in event.decisions:
                writer.decided(decision)  # type: ignore[attr-defined]  # only who reads decisions gets any
    return chunks


def _for_client(error: Exception) -> Exception:
    if isinstance(error, ClientLeft):
        return error
    if isinstance(error, WorkerEnded):
        return unavailable("The server stopped before the answer was complete; try again soon.", retry_after=5)
    return from_answering(error)


def prepare(
    data: bytes, read: Callable[[dict[str, Any], Served], Ask], engine: Engine, served: Served
) -> tuple[Ask, list[Question]]:
    """Everything that can be done about a request without computing: ``RequestError`` for what is wrong with it.

    It parses, opens and decodes images, renders and tokenizes; it makes no array, so it may run in any thread, beside
    the one that drives the engine.
    """
    try:
        ask = opened(read(parse(data), served), served)
        return _light(ask), [_question(ask, prompt, engine) for prompt in ask.prompts]
    except Exception as error:
        told = from_preparing(error)
        if told.status >= 500:
            log.error("a request could not be prepared", extra={"fields": {"where": where(error)}})
        raise told from None


def _question(ask: Ask, prompt: Any, engine: Engine) -> Question:
    options = GenerationOptions(**ask.options)
    reading = None if ask.choices is None else DecisionReading(engine.processor, ask.choices)
    request = engine.request(prompt, None, options)
    if options.video is not None:  # its frames are among the request's images now
        options = replace(options, video=None, fps=GenerationOptions.fps, max_frames=GenerationOptions.max_frames)
    return Question(request, options if reading is None else reading.options(options), ask.n, reading)


def _light(ask: Ask) -> Ask:
    """Without the images and videos, which would stay in memory until the answer is written."""
    options = {name: value for name, value in ask.options.items() if name != "video"}
    return replace(ask, prompt="", others=("",) * len(ask.others), options=options)


class _Notes:
    """Notes sizes and times of what is answered, in the record and the metrics."""

    def __init__(self, record: Record, service: Service, work: Work) -> None:
        self.record, self._metrics, self._work = record, service.metrics, work
        self._n = work.questions[0].n
        self._last: dict[int, float] = {}

    def note(self, some: list[Event]) -> None:
        now = time.perf_counter()
        for event in some:
            if isinstance(event, Said):
                self._note_token(event, now)
            elif isinstance(event, End) and self._work.taken is not None:
                self.record.queued = self._work.taken - self.record.start

    def _note_token(self, said: Said, now: float) -> None:
        record, response = self.record, said.response
        record.answer_tokens += 1
        if said.index in self._last:
            self._metrics.between_tokens.observe(now - self._last[said.index])
        elif said.index % self._n == 0:  # the others have the same prompt
            record.prompt_tokens += response.prompt_tokens
            record.cached_tokens += response.cached_tokens
        if not self._last:
            record.first = now - record.start
            self._metrics.first_token.observe(record.first)
        self._last[said.index] = now
