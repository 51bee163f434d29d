"""How tokens are chosen and what ends an answer: one table for every dialect whose answers are texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .shapes import Shape, number, texts, whole
from .table import Honoured

if TYPE_CHECKING:
    from .fields import Fields

MAX_STOPS, MAX_STOP_LENGTH = 16, 500
MAX_BIASES = 1024
TOKEN_ID = "[0-9]{1,9}"


def _read_biases(body: Fields, name: str) -> dict[int, float] | None:
    """Token ids are strings in JSON."""
    biases = body.inner(name)
    if biases is None or not biases.values:
        return None
    if len(biases.values) > MAX_BIASES:
        body.refuse(name, f"{name} must have at most {MAX_BIASES} token ids, got {len(biases.values)}.")
    for id in biases.values:
        if not re.fullmatch(TOKEN_ID, id):
            body.refuse(name, f"{name} must have token ids, whole numbers as strings, for its names.")
    return {int(id): biases.needed(id, biases.number(id)) for id in biases.values}


_BIASES = {
    "type": "object",
    "propertyNames": {"pattern": f"^{TOKEN_ID}$"},
    "additionalProperties": {"type": "number"},
    "maxProperties": MAX_BIASES,
}
PENALTY = number(minimum=-2, maximum=2)
SEED = Shape({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, lambda body, name: body.whole(name))
# The names are the library's options too, and so are the ranges.
SAMPLING: dict[str, Honoured] = {
    "temperature": Honoured("0 unless given (OpenAI's is 1): the likeliest token each time", number(minimum=0)),
    "top_p": Honoured(
        "sample among the likeliest tokens of this total probability", number(exclusiveMinimum=0, maximum=1)
    ),
    "top_k": Honoured("sample among this many of the likeliest tokens", whole(0)),
    "min_p": Honoured(
        "sample among tokens that are at least this probable, relative to the likeliest", number(minimum=0, maximum=1)
    ),
    "seed": Honoured("the same seed gives the same text; of several answers, answer i has seed + i", SEED),
    "stop": Honoured("up to 16 strings, which end the answer and are not in it", texts(MAX_STOPS, MAX_STOP_LENGTH)),
    "logit_bias": Honoured("token ids as strings", Shape(_BIASES, _read_biases)),
    "presence_penalty": Honoured("-2 to 2", PENALTY),
    "frequency_penalty": Honoured("-2 to 2", PENALTY),
    "repetition_penalty": Honoured("above 1: recent tokens are less likely to come again", number(exclusiveMinimum=0)),
    "repetition_context_size": Honoured("how many tokens back this looks, 20 unless given", whole(1)),
    "min_tokens": Honoured("the model can't end its answer before this many tokens", whole(0)),
}


def read_sampling(body: Fields) -> dict[str, Any]:
    """What a body says about the fields of ``SAMPLING``, as options of the library."""
    options = {name: field.shape.read(body, name) for name, field in SAMPLING.items()}
    return {name: value for name, value in options.items() if value is not None}
