"""Fields that several dialects have in common -> the library's options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .errors import no_such_model
from .fields import Fields, Honoured, Ignored, Refused, Table

if TYPE_CHECKING:
    from .ask import Served

MAX_STOPS, MAX_STOP_LENGTH = 16, 500
MAX_BIASES = 1024

# What this server adds to every dialect, and what clients of other servers send.
EXTENSIONS: Table = {
    "top_k": Honoured("sample among so many of the likeliest tokens"),
    "min_p": Honoured("sample among tokens that are at least so probable, relative to the likeliest"),
    "repetition_penalty": Honoured("above 1: what was said lately is less likely to come again"),
    "repetition_context_size": Honoured("how many tokens back that looks, 20 unless given"),
    "min_tokens": Honoured("the model can't end its answer before"),
    "image_size": Honoured("side in pixels that images are scaled to, a multiple of 64; goes before `detail`"),
    "frames": Honoured("how many frames to take of each animation, 1 unless given"),
    "fps": Honoured("frames a second to take of a film, 1 unless given"),
    "max_frames": Honoured("the most frames to take of a film, 8 unless given"),
    "chat_template": Refused("prompts are written with the checkpoint's own template."),
    "continue_final_message": Refused("every answer is a message of its own.", (False,)),
    "guided_json": Refused("send response_format with a json_schema."),
    "guided_regex": Refused("send response_format with a json_schema that has a pattern."),
    "guided_choice": Refused("send a json_schema with an enum, or ask /v1/decisions."),
    "guided_grammar": Refused("send response_format with a json_schema."),
    "structured_outputs": Refused("send response_format with a json_schema."),
    "ignore_eos": Refused("send min_tokens.", (False,)),
    "use_beam_search": Refused("answers are greedy or sampled.", (False,)),
    "adapters": Refused("adapters are chosen when the server starts."),
    "resize_shape": Refused("send image_size."),
    "xtc_probability": Refused("sample with temperature, top_p, top_k and min_p.", (0, 0.0)),
}
# Fields that several of OpenAI's endpoints have and that change no answer.
BOOKKEEPING: Table = {
    "metadata": Ignored("for OpenAI's own dashboards"),
    "prompt_cache_key": Ignored("prompts that begin alike are recognised without it"),
    "prompt_cache_options": Ignored("prompts that begin alike are recognised without it"),
    "prompt_cache_retention": Ignored("prompts that begin alike are recognised without it"),
    "safety_identifier": Ignored("for OpenAI's own safety"),
    "service_tier": Ignored("there is one tier"),
    "user": Ignored("clients are told apart by key and address"),
}
NO_TOOLS = "the model calls no tools; ask for JSON by a schema."


def check_model(body: Fields, served: Served):
    """``RequestError`` for another model than the one that is served; a body may name none."""
    name = body.text("model")
    if name is not None and name not in (served.model, *served.aliases):
        raise no_such_model(name, served.model)


def read_max_tokens(body: Fields, served: Served, *names: str) -> int:
    """The longest answer, in tokens, under any of the names that it has."""
    given = {name: value for name in names if (value := body.whole(name, 1, served.max_tokens)) is not None}
    if len(set(given.values())) > 1:
        body.refuse(names[0], f"{' and '.join(given)} are two names of one limit, and differ; give one of them.")
    if given:
        return next(iter(given.values()))
    least = body.whole("min_tokens", 0, served.max_tokens) or 0
    return max(min(served.default_max_tokens, served.max_tokens), least)


def read_sampling(body: Fields) -> dict[str, Any]:
    """How tokens are chosen, and what ends an answer; ranges are the library's."""
    options = {
        "temperature": body.number("temperature"),
        "top_p": body.number("top_p"),
        "top_k": body.whole("top_k", 0),
        "min_p": body.number("min_p"),
        "seed": body.whole("seed"),
        "repetition_penalty": body.number("repetition_penalty"),
        "repetition_context_size": body.whole("repetition_context_size", 1),
        "presence_penalty": body.number("presence_penalty"),
        "frequency_penalty": body.number("frequency_penalty"),
        "min_tokens": body.whole("min_tokens", 0),
        "stop": _read_stop(body),
        "logit_bias": _read_logit_bias(body),
    }
    return {name: value for name, value in options.items() if value is not None}


def _read_stop(body: Fields) -> list[str] | None:
    stop = body.texts("stop", MAX_STOPS)
    for text in stop or []:
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            body.refuse("stop", f"stop must hold strings of 1 to {MAX_STOP_LENGTH} characters, got {len(text)}.")
    return stop or None


def _read_logit_bias(body: Fields) -> dict[int, float] | None:
    """Token ids are strings in JSON."""
    biases = body.inner("logit_bias")
    if biases is None or not biases.values:
        return None
    if len(biases.values) > MAX_BIASES:
        body.refuse("logit_bias", f"logit_bias must have at most {MAX_BIASES} token ids, got {len(biases.values)}.")
    for id in biases.values:
        if not re.fullmatch(r"[0-9]{1,9}", id):
            body.refuse("logit_bias", "logit_bias must have token ids, whole numbers as strings, for its names.")
    return {int(id): biases.needed(id, biases.number(id)) for id in biases.values}


def read_n(body: Fields, served: Served, prompts: int = 1) -> int:
    """How many answers to each prompt."""
    n = body.whole("n", 1, served.max_n) or 1
    if n * prompts > served.max_n:
        body.refuse("n", f"A request can have {served.max_n} answers here, and asks for {n} to {prompts} prompts.")
    return n


def read_format(format: Fields | None, schema: Fields | None) -> dict[str, Any]:
    """Structured output.

    Args:
        format: the object with the format's ``type``.
        schema: the object that has its ``schema``, if it is json_schema.
    """
    kind = None if format is None else format.one_of("type", "text", "json_object", "json_schema")
    if format is None or kind in (None, "text"):
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    if schema is None:
        format.refuse("json_schema", f"{format.where}json_schema is missing; give it with the schema.")
    schema.text("name")
    schema.text("description")
    schema.flag("strict")  # schemas hold either way
    found = schema.inner("schema")
    return {"json_schema": {"type": "object"} if found is None else found.values}


def read_stream(body: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with its usage."""
    stream, options = bool(body.flag("stream")), body.inner("stream_options")
    if options is None:
        return stream, False
    if not stream:
        body.refuse("stream_options", "stream_options is for streams; send stream: true with it.")
    options.flag("include_obfuscation")  # which would only pad chunks
    return stream, bool(options.flag("include_usage"))
