"""What a field's value looks like: how it is read, and the same as a JSON schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fields import Fields

Schema = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """
    Attributes:
        schema: what the served description says of it. Null, which means not given, goes without saying.
        read: (an object, the field's name) -> the value; ``RequestError`` for one that is no such.
    """

    schema: Schema
    read: Callable[[Fields, str], Any]


def whole(least: int | None = None, most: int | None = None) -> Shape:
    bounds = {"minimum": least, "maximum": most}
    schema = {"type": "integer", **{name: bound for name, bound in bounds.items() if bound is not None}}
    return Shape(schema, lambda fields, name: fields.whole(name, least, most))


def number(**bounds: float) -> Shape:
    """A number.

    Args:
        bounds: ``minimum``, ``maximum``, ``exclusiveMinimum``: what the library allows, and refuses itself.
    """
    return Shape({"type": "number", **bounds}, lambda fields, name: fields.number(name))


def texts(most: int, length: int) -> Shape:
    """A string, or at most so many, of 1 to ``length`` characters; an empty list is None."""

    def read(fields: Fields, name: str) -> list[str] | None:
        found = fields.texts(name, most)
        for text in found or []:
            if not 1 <= len(text) <= length:
                fields.refuse(name, f"{name} must hold strings of 1 to {length} characters, got {len(text)}.")
        return found or None

    text = {"type": "string", "minLength": 1, "maxLength": length}
    return Shape({"anyOf": [text, {"type": "array", "items": text, "maxItems": most}]}, read)


def given(schema: Schema) -> Shape:
    """A value that is read by whoever knows more about it."""
    return Shape(schema, lambda fields, name: fields.get(name))


FLAG = Shape({"type": "boolean"}, lambda fields, name: fields.flag(name))
TEXT = Shape({"type": "string"}, lambda fields, name: fields.text(name))


def an_object(*needed: str, **properties: Schema) -> Schema:
    """The schema of an object with at least these properties."""
    return {"type": "object", "properties": properties, **({"required": list(needed)} if needed else {})}


def a_list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def or_null(schema: Schema) -> Schema:
    return either(schema, {"type": "null"})
