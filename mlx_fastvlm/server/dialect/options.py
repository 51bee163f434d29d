"""Fields that several dialects have in common -> the library's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import no_such_model
from .shapes import FLAG, TEXT, Schema, Shape, an_object, either, given, number, one_of, or_null, whole
from .table import Honoured, Ignored, Refused, Table

if TYPE_CHECKING:
    from .ask import Served
    from .fields import Fields

IMAGE_SIZE = Shape({"type": "integer", "minimum": 64, "multipleOf": 64}, lambda body, name: body.whole(name))
# What this server adds to every dialect, and what clients of other servers send.
EXTENSIONS: Table = {
    "image_size": Honoured(
        "side in pixels that images are scaled to, a multiple of 64; takes precedence over `detail`", IMAGE_SIZE
    ),
    "frames": Honoured("how many frames to take of each animation, 1 unless given", whole(1)),
    "fps": Honoured("frames a second to take of a video, 1 unless given", number(exclusiveMinimum=0)),
    "max_frames": Honoured("the most frames to take of a video, 8 unless given", whole(1)),
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
# Fields that mean the same wherever they are.
MODEL = Honoured("the served model, one of its aliases, or left out", TEXT)
STREAM = Honoured("server-sent events", FLAG)
STREAM_OPTIONS = given(an_object(include_usage=or_null(FLAG.schema), include_obfuscation=or_null(FLAG.schema)))
LENGTH = COUNT = whole(1)
TOP_LOGPROBS = whole(0, 20)
NO_TOOLS = "the model calls no tools; ask for JSON by a schema."


def check_model(body: Fields, served: Served) -> None:
    """``RequestError`` for another model than the one that is served; a body may name none."""
    name = body.text("model")
    if name is not None and name not in (served.model, *served.aliases):
        raise no_such_model(name, served.model)


def read_max_tokens(body: Fields, served: Served, *names: str) -> int:
    """How many tokens an answer may have, under any of the names that it has."""
    given = {name: value for name in names if (value := body.whole(name, 1, served.limits.max_tokens)) is not None}
    if len(set(given.values())) > 1:
        body.refuse(names[0], f"{' and '.join(given)} are two names of one limit, and differ; give one of them.")
    if given:
        return next(iter(given.values()))
    least = body.whole("min_tokens", 0, served.limits.max_tokens) or 0
    return max(min(served.limits.default_max_tokens, served.limits.max_tokens), least)


def read_n(body: Fields, served: Served, prompts: int = 1) -> int:
    """How many answers to each prompt."""
    n = body.whole("n", 1, served.limits.max_n) or 1
    if n * prompts > served.limits.max_n:
        body.refuse(
            "n", f"A request can have {served.limits.max_n} answers here, and asks for {n} to {prompts} prompts."
        )
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


def schema_of_format(held: Callable[[Schema], dict[str, Schema]], *needed: str) -> Schema:
    """Of what :func:`read_format` reads.

    Args:
        held: the properties of a format's object that hold these of ``json_schema``.
        needed: those that such a format can't be without.
    """
    named = {"name": or_null(TEXT.schema), "description": or_null(TEXT.schema), "strict": or_null(FLAG.schema)}
    inner = an_object(**named, schema=or_null(an_object()))
    plain = an_object(type=or_null(one_of("text", "json_object")))
    return either(plain, an_object("type", *needed, type=one_of("json_schema"), **held(inner)))


def read_stream(body: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with its usage."""
    stream, options = bool(body.flag("stream")), body.inner("stream_options")
    if options is None:
        return stream, False
    if not stream:
        body.refuse("stream_options", "stream_options is for streams; send stream: true with it.")
    options.flag("include_obfuscation")  # which would only pad chunks
    return stream, bool(options.flag("include_usage"))
