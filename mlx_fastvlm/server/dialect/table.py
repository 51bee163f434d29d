"""What is done about each field that clients know: what checks bodies, and what docs and clients are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fields import Fields
    from .shapes import Shape


@dataclass(frozen=True)
class Honoured:
    """A field that does what it says."""

    note: str
    shape: Shape


@dataclass(frozen=True)
class Ignored:
    """A field that changes no answer."""

    note: str


@dataclass(frozen=True)
class Refused:
    """A field that would change the answer and can't be served.

    Attributes:
        note: why, and what to do.
        harmless: values that ask for nothing, which are taken.
    """

    note: str
    harmless: tuple[Any, ...] = ()


Table = dict[str, "Honoured | Ignored | Refused"]


def check_table(body: Fields, table: Table) -> None:
    """``RequestError`` for a field that the table refuses."""
    for name, decision in table.items():
        value = body.get(name)
        if isinstance(decision, Refused) and value is not None and not any(_same(value, x) for x in decision.harmless):
            body.refuse(name, f"{name} is not served here: {decision.note}")


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def schema_of(table: Table, *needed: str) -> dict[str, Any]:
    """The JSON schema of a body; ``needed`` are the fields without which there is no request."""
    return {
        "type": "object",
        "required": list(needed),
        "properties": {name: _described(decision) for name, decision in table.items()},
    }


def _described(decision: Honoured | Ignored | Refused) -> dict[str, Any]:
    if isinstance(decision, Honoured):
        return {"anyOf": [decision.shape.schema, {"type": "null"}], "description": decision.note}
    if isinstance(decision, Ignored):
        return {"description": f"Ignored: {decision.note}."}
    return {"enum": [*decision.harmless, None], "description": f"Refused: {decision.note}"}
