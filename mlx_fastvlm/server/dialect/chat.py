"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .ask import Ask
from .fields import Fields
from .messages import ADDRESS, Conversation, Part, messages_schema, part_schema, refuse_part
from .options import (
    BOOKKEEPING,
    COUNT,
    EXTENSIONS,
    LENGTH,
    MODEL,
    NO_TOOLS,
    STREAM,
    STREAM_OPTIONS,
    TOP_LOGPROBS,
    check_model,
    read_format,
    read_max_tokens,
    read_n,
    read_stream,
    schema_of_format,
)
from .sampling import SAMPLING, read_sampling
from .shapes import FLAG, TEXT, given
from .table import Honoured, Ignored, Refused, Table, check_table, schema_of
from .told import Answers

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from .ask import Chunk, Served
    from .errors import RequestError
    from .logprobs import Scored

MESSAGES = messages_schema(
    part_schema("text", text=TEXT.schema),
    part_schema("image_url", image_url=ADDRESS),
    part_schema("video_url", video_url=ADDRESS),
)
RESPONSE_FORMAT = schema_of_format(lambda schema: {"json_schema": schema}, "json_schema")
# What is done about each field of openai's CompletionCreateParams, and about others.
FIELDS: Table = {
    "messages": Honoured("roles system, developer, user, assistant; parts text, image_url, video_url", given(MESSAGES)),
    "model": MODEL,
    "max_tokens": Honoured("stop after this many tokens", LENGTH),
    "max_completion_tokens": Honoured("the same; both together must agree", LENGTH),
    "n": Honoured("this many answers to one prompt, which is read once", COUNT),
    "logprobs": Honoured("with the tokens whose text is in the answer", FLAG),
    "top_logprobs": Honoured("0 to 20, with logprobs", TOP_LOGPROBS),
    "response_format": Honoured(
        "text, json_object, json_schema; a schema holds with strict and without", given(RESPONSE_FORMAT)
    ),
    "stream": STREAM,
    "stream_options": Honoured("include_usage; include_obfuscation pads nothing here", STREAM_OPTIONS),
    "audio": Refused("the model only writes."),
    "modalities": Refused("the model only writes.", (["text"],)),
    "tools": Refused(NO_TOOLS, ([],)),
    "tool_choice": Refused(NO_TOOLS, ("none", "auto")),
    "functions": Refused(NO_TOOLS, ([],)),
    "function_call": Refused(NO_TOOLS, ("none", "auto")),
    "web_search_options": Refused("the model searches nothing."),
    "reasoning_effort": Refused("the model answers without reasoning first.", ("none",)),
    "verbosity": Refused("say in the prompt how long the answer should be.", ("medium",)),
    "moderation": Refused("nothing is moderated."),
    "images": Refused("send them as parts of messages.", ([],)),
    "input": Refused("send messages, or ask /v1/responses."),
    "instructions": Refused("send a message of the role system."),
    "max_output_tokens": Refused("send max_completion_tokens."),
    "parallel_tool_calls": Ignored("there are no tools"),
    "prediction": Ignored("it would only speed answers up"),
    "store": Ignored("nothing is stored"),
    **SAMPLING,
    **EXTENSIONS,
    **BOOKKEEPING,
}
BODY = schema_of(FIELDS, "messages")


def read(body: dict[str, Any], served: Served) -> Ask:
    """A request's JSON object -> what it asks; ``RequestError`` for what can't be."""
    fields = Fields(body)
    check_table(fields, FIELDS)
    check_model(fields, served)
    conversation = Conversation(served)
    if not fields.needed("messages", fields.items("messages")):
        fields.refuse("messages", "messages is empty; give at least one.")
    conversation.read(fields, "messages", read_part)
    stream, include_usage = read_stream(fields)
    options = {
        "max_tokens": read_max_tokens(fields, served, "max_completion_tokens", "max_tokens"),
        **read_sampling(fields),
        **_read_logprobs(fields),
        **read_format(*_format(fields)),
        **conversation.options(fields),
    }
    n = read_n(fields, served)
    return Ask(conversation.messages, options, n=n, stream=stream, include_usage=include_usage)


def read_part(conversation: Conversation, part: Fields, role: str) -> Iterator[Part]:
    """What a part of a message brings; see ``Conversation.read``."""
    kind = part.text("type")
    if kind == "text":
        yield conversation.text(part)
    elif kind == "image_url":
        yield conversation.image(_url(part, kind), "url", role)
    elif kind == "video_url":
        conversation.take_video(_url(part, kind), "url", role)
    else:
        refuse_part(part, "text", "image_url", "video_url")


def _url(part: Fields, name: str) -> Fields:
    """The object with the address; some clients send the address alone."""
    address = part.get(name)
    if isinstance(address, str):
        return Fields({"url": address}, f"{part.where}{name}.")
    return part.needed(name, part.inner(name))


def _read_logprobs(fields: Fields) -> dict[str, Any]:
    logprobs, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, 20)
    if top and not logprobs:
        fields.refuse("top_logprobs", "top_logprobs needs logprobs: true beside it.")
    return {"logprobs": True, "top_logprobs": top or 0} if logprobs else {}


def _format(fields: Fields) -> tuple[Fields | None, Fields | None]:
    format = fields.inner("response_format")
    return format, None if format is None else format.inner("json_schema")


class Writer:
    """chat.completion and chat.completion.chunk."""

    done = True

    def __init__(self, ask: Ask, served: Served) -> None:
        self._ask = ask
        self._answers = Answers(ask, served, "chatcmpl")

    def begin(self) -> list[Chunk]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, delta) for index in range(len(self._answers.all))]

    def piece(self, index: int, response: GenerationResponse) -> list[Chunk]:
        answer, chunks = self._answers.all[index], []
        scored = answer.add(response)
        if response.text or scored:
            chunks.append(self._chunk(index, {"content": response.text}, scored))
        if response.finish_reason is not None:
            chunks.append(self._chunk(index, {}, finish_reason=response.finish_reason))
        return chunks

    def end(self) -> list[Chunk]:
        return [{**self._body("chat.completion.chunk", []), "usage": self._answers.usage()}] * self._ask.include_usage

    def fail(self, error: RequestError) -> list[Chunk]:
        return [error.body]

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logprobs(answer.scored),
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(self._answers.all)
        ]
        return {**self._body("chat.completion", choices), "usage": self._answers.usage()}

    def _chunk(
        self, index: int, delta: dict[str, Any], scored: list[Scored] | None = None, finish_reason: str | None = None
    ) -> Chunk:
        logprobs = self._logprobs(scored) if scored else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._ask.include_usage else {}
        return {**self._body("chat.completion.chunk", [choice]), **usage}

    def _body(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        answers = self._answers
        return {
            "id": answers.id,
            "object": kind,
            "created": answers.created,
            "model": answers.model,
            "choices": choices,
        }

    def _logprobs(self, scored: list[Scored]) -> dict[str, Any] | None:
        asked = self._ask.options.get("logprobs", False)
        return {"content": [one.whole for one in scored], "refusal": None} if asked else None
