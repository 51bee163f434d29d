"""POST /v1/responses, without a memory: every request brings all that was said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .ask import Ask
from .fields import Fields, brief, check_unicode
from .images import DETAILS
from .messages import Conversation, Part, messages_schema, part_schema, refuse_part
from .options import (
    BOOKKEEPING,
    EXTENSIONS,
    LENGTH,
    MODEL,
    NO_TOOLS,
    STREAM_OPTIONS,
    TOP_LOGPROBS,
    check_model,
    read_format,
    read_max_tokens,
    read_stream,
    schema_of_format,
)
from .sampling import SAMPLING, read_sampling
from .shapes import FLAG, TEXT, a_list, an_object, either, given, one_of, or_null
from .table import Honoured, Ignored, Refused, Table, check_table, schema_of
from .told import Answers, new_id

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from .ask import Chunk, Served
    from .errors import RequestError

LOGPROBS = "message.output_text.logprobs"
NO_MEMORY = "nothing is stored, so send all that was said as input."

_IMAGE = part_schema("input_image", image_url=TEXT.schema)
_IMAGE["properties"]["detail"] = or_null(one_of(*DETAILS))
INPUT = either(
    TEXT.schema,
    messages_schema(part_schema("input_text", text=TEXT.schema), part_schema("output_text", text=TEXT.schema), _IMAGE),
)
TEXT_OPTIONS = an_object(
    format=or_null(schema_of_format(lambda schema: schema["properties"])), verbosity=or_null(one_of("medium"))
)
INCLUDE = either(TEXT.schema, a_list(TEXT.schema))
METADATA = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 512}, "maxProperties": 16}
# What is done about each field of openai's ResponseCreateParams.
FIELDS: Table = {
    "input": Honoured("a string, or messages with the parts input_text, input_image, output_text", given(INPUT)),
    "model": MODEL,
    "instructions": Honoured("a system prompt before the input", TEXT),
    "max_output_tokens": Honoured("stop after this many tokens", LENGTH),
    "text": Honoured("format: text, json_object, json_schema; verbosity only medium", given(TEXT_OPTIONS)),
    "include": Honoured(f"{LOGPROBS}; nothing else applies here", given(INCLUDE)),
    "top_logprobs": Honoured("0 to 20; more than 0 includes the logprobs", TOP_LOGPROBS),
    "stream": Honoured("server-sent events, each with its name and number", FLAG),
    "stream_options": Honoured("include_obfuscation pads nothing here", STREAM_OPTIONS),
    "metadata": Honoured("repeated in the response", given(METADATA)),
    "background": Refused("send it without, and wait.", (False,)),
    "background_options": Refused("send it without, and wait."),
    "conversation": Refused(NO_MEMORY),
    "previous_response_id": Refused(NO_MEMORY),
    "context_management": Refused("nothing is made shorter.", ([],)),
    "truncation": Refused("nothing is made shorter.", ("disabled",)),
    "prompt": Refused("there are no stored prompts; send instructions and input."),
    "reasoning": Refused(
        "the model answers without reasoning first.",
        ({}, {"effort": "none"}, {"effort": None}, {"summary": None}, {"effort": None, "summary": None}),
    ),
    "tools": Refused(NO_TOOLS, ([],)),
    "tool_choice": Refused(NO_TOOLS, ("none", "auto")),
    "moderation": Refused("nothing is moderated."),
    "images": Refused("send them as parts of the input.", ([],)),
    "image": Refused(
        "images are read as they are; image_size says how large.",
        ({}, {"context_compression": "auto"}, {"context_compression": "disabled"}),
    ),
    "messages": Refused("send input, or ask /v1/chat/completions."),
    "response_format": Refused("send text with a format."),
    "max_tokens": Refused("send max_output_tokens."),
    "max_completion_tokens": Refused("send max_output_tokens."),
    "n": Refused("a response is one answer.", (1,)),
    "logprobs": Refused(f"send include with {LOGPROBS}.", (False,)),
    "access_programs": Ignored("for OpenAI's own models"),
    "max_tool_calls": Ignored("there are no tools"),
    "parallel_tool_calls": Ignored("there are no tools"),
    "store": Ignored("nothing is stored, which the response says"),
    **SAMPLING,
    **EXTENSIONS,
    **{name: decision for name, decision in BOOKKEEPING.items() if name != "metadata"},
}
BODY = schema_of(FIELDS, "input")


def read(body: dict[str, Any], served: Served) -> Ask:
    """A request's JSON object -> what it asks; ``RequestError`` for what can't be."""
    fields = Fields(body)
    check_table(fields, FIELDS)
    check_model(fields, served)
    conversation = Conversation(served)
    instructions = fields.text("instructions")
    if instructions is not None:
        conversation.say("system", instructions)
    _read_input(fields, conversation)
    text = fields.inner("text")
    options = {
        "max_tokens": read_max_tokens(fields, served, "max_output_tokens"),
        **read_sampling(fields),
        **_read_logprobs(fields),
        **_read_text(text),
        **conversation.options(fields),
    }
    stream, _ = read_stream(fields)
    about = {
        "instructions": instructions,
        "metadata": _read_metadata(fields),
        "max_output_tokens": fields.get("max_output_tokens"),
        "text": (text and text.values) or {"format": {"type": "text"}},
        "top_logprobs": options.get("top_logprobs", 0),
    }
    return Ask(conversation.messages, options, stream=stream, about=about)


def _read_input(fields: Fields, conversation: Conversation) -> None:
    given = fields.needed("input", fields.get("input"))
    if isinstance(given, str):
        conversation.say("user", str(fields.text("input")))
        return
    for item in fields.objects("input"):
        kind = item.text("type")
        if kind not in (None, "message"):
            item.refuse("type", f"{item.where}type must be message, got {brief(kind)}; {NO_TOOLS}")
    if not given:
        fields.refuse("input", "input is empty; give a string or a message.")
    conversation.read(fields, "input", _part)


def _part(conversation: Conversation, part: Fields, role: str) -> Iterator[Part]:
    kind = part.text("type")
    if kind in ("input_text", "output_text"):
        yield conversation.text(part)
    elif kind == "input_image":
        if part.get("file_id") is not None:
            part.refuse("file_id", "There are no stored files; send the image as image_url.")
        yield conversation.image(part, "image_url", role)
    else:
        refuse_part(part, "input_text", "input_image", "output_text")


def _read_logprobs(fields: Fields) -> dict[str, Any]:
    include = fields.texts("include", 100) or []
    top = fields.whole("top_logprobs", 0, 20) or 0
    return {"logprobs": True, "top_logprobs": top} if top or LOGPROBS in include else {}


def _read_text(text: Fields | None) -> dict[str, Any]:
    if text is None:
        return {}
    if text.text("verbosity") not in (None, "medium"):
        text.refuse("verbosity", "verbosity is not served here: say in the prompt how long the answer should be.")
    format = text.inner("format")
    return read_format(format, format)


def _read_metadata(fields: Fields) -> dict[str, str]:
    metadata = fields.inner("metadata")
    if metadata is None:
        return {}
    if len(metadata.values) > 16:
        fields.refuse("metadata", f"metadata must have at most 16 names, got {len(metadata.values)}.")
    for name, value in metadata.values.items():
        if not isinstance(value, str) or len(name) > 64 or len(value) > 512:
            fields.refuse("metadata", "metadata must hold strings of at most 512 characters, named by at most 64.")
        check_unicode(name + value, "metadata")
    return metadata.values


class Writer:
    """response, and the events of its stream."""

    done = False

    def __init__(self, ask: Ask, served: Served) -> None:
        self._ask = ask
        self._answers = Answers(ask, served, "resp")
        self._item = new_id("msg")
        self._number = -1

    def begin(self) -> list[Chunk]:
        return [
            self._event("response.created", response=self._response("in_progress")),
            self._event("response.in_progress", response=self._response("in_progress")),
            self._event("response.output_item.added", output_index=0, item=self._message("in_progress", [])),
            self._text_event("response.content_part.added", part=self._part("")),
        ]

    def piece(self, index: int, response: GenerationResponse) -> list[Chunk]:
        answer, events = self._answers.all[index], []
        scored = answer.add(response)
        if response.text or scored:
            logprobs = [one.whole for one in scored]
            events.append(self._text_event("response.output_text.delta", delta=response.text, logprobs=logprobs))
        if response.finish_reason is not None:
            part = self._part(answer.text)
            logprobs = [one.whole for one in answer.scored]
            events += [
                self._text_event("response.output_text.done", text=answer.text, logprobs=logprobs),
                self._text_event("response.content_part.done", part=part),
                self._event("response.output_item.done", output_index=0, item=self._message(self._status, [part])),
            ]
        return events

    def end(self) -> list[Chunk]:
        return [self._event(f"response.{self._status}", response=self.whole())]

    def fail(self, error: RequestError) -> list[Chunk]:
        """The last has an ``error`` object too: openai's client raises for that, and only for that."""
        plain = {"code": "server_error", "message": error.message}
        return [
            self._event("response.failed", response=self._response("failed", error=plain)),
            self._event("error", code=error.code, message=error.message, param=error.param, **error.body),
        ]

    def whole(self) -> dict[str, Any]:
        status, answer = self._status, self._answers.all[0]
        incomplete = None if status == "completed" else {"reason": "max_output_tokens"}
        usage = self._answers.usage()
        return self._response(
            status,
            incomplete_details=incomplete,
            output=[self._message(status, [self._part(answer.text)])],
            usage={
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        )

    @property
    def _status(self) -> str:
        return "incomplete" if self._answers.all[0].finish_reason == "length" else "completed"

    def _response(self, status: str, **given: Any) -> dict[str, Any]:
        answers, options = self._answers, self._ask.options
        return {
            "id": answers.id,
            "object": "response",
            "created_at": answers.created,
            "status": status,
            "model": answers.model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._ask.about,
            "temperature": options.get("temperature", 0.0),
            "top_p": options.get("top_p", 1.0),
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "background": False,
            "store": False,
            "truncation": "disabled",
            **given,
        }

    def _message(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        logprobs = [one.whole for one in self._answers.all[0].scored]
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _text_event(self, kind: str, **given: Any) -> Chunk:
        return self._event(kind, item_id=self._item, output_index=0, content_index=0, **given)

    def _event(self, kind: str, **given: Any) -> Chunk:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **given}
