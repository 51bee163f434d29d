"""JSON bodies -> typed values; every error names its field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from ...errors import one_line, short
from .errors import RequestError

MAX_VALUES = 200_000  # of a body, strings of any length counting as one: a few bytes each can cost a hundred in memory
MAX_DEPTH = 64

Value = TypeVar("Value")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request, or ``RequestError``."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise RequestError(f"The body has more than {MAX_VALUES} values; send less at once.")
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise RequestError(f"The body is not JSON ({one_line(str(error))}); send a JSON object.") from None
    if not isinstance(value, dict):
        raise RequestError(f"The body must be a JSON object, got {_kind(value)}.")
    _check_depth(value)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_deep() -> RequestError:
    return RequestError(f"The body is nested more than {MAX_DEPTH} deep; send a flatter one.")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent)]
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return
    raise _too_deep()


class Fields:
    """An object of the body. Each method gives a field's value, or None where it is not given or null.

    Attributes:
        where: what errors call the object, with a dot behind it; "" for the body itself.
    """

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self.values, self.where = values, where

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def refuse(self, name: str, sentence: str) -> NoReturn:
        raise RequestError(sentence, self.where + name)

    def _typed(self, name: str, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self.get(name)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            self.refuse(name, f"{self.where}{name} must be {wanted}, got {_kind(value)}.")
        return value

    def text(self, name: str) -> str | None:
        value: str | None = self._typed(name, (str,), "a string")
        if value is not None:
            check_unicode(value, self.where + name)
        return value

    def whole(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        value: int | float | None = self._typed(name, (int, float), "a whole number")
        if isinstance(value, float):
            if not value.is_integer():  # which infinity is not either
                self.refuse(name, f"{self.where}{name} must be a whole number, got {value!r}.")
            value = int(value)
        if value is not None and least is not None and value < least:
            self.refuse(name, f"{self.where}{name} must be at least {least}, got {short(value)}.")
        if value is not None and most is not None and value > most:
            self.refuse(name, f"{self.where}{name} must be at most {most} here, got {short(value)}.")
        return value

    def number(self, name: str) -> float | None:
        value: float | None = self._typed(name, (int, float), "a number")
        if value is not None and not _is_finite(value):
            self.refuse(name, f"{self.where}{name} must be a finite number, got {short(value)}.")
        return value

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, (bool,), "true or false")
        return value

    def items(self, name: str) -> list[Any] | None:
        value: list[Any] | None = self._typed(name, (list,), "a list")
        return value

    def inner(self, name: str) -> Fields | None:
        """An object in this one."""
        value = self._typed(name, (dict,), "an object")
        return None if value is None else Fields(value, f"{self.where}{name}.")

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        for i, value in enumerate(self.items(name) or []):
            if not isinstance(value, dict):
                self.refuse(f"{name}[{i}]", f"{self.where}{name}[{i}] must be an object, got {_kind(value)}.")
            yield Fields(value, f"{self.where}{name}[{i}].")

    def texts(self, name: str, most: int) -> list[str] | None:
        """A string, or a list of at most so many."""
        value = self._typed(name, (str, list), "a string or a list of strings")
        if value is None:
            return None
        found = [value] if isinstance(value, str) else value
        if len(found) > most:
            self.refuse(name, f"{self.where}{name} must have at most {most} strings, got {len(found)}.")
        for text in found:
            if not isinstance(text, str):
                self.refuse(name, f"{self.where}{name} must hold strings, got {_kind(text)}.")
            check_unicode(text, self.where + name)
        return found

    def one_of(self, name: str, *values: str) -> str | None:
        value = self.text(name)
        if value is not None and value not in values:
            self.refuse(name, f"{self.where}{name} must be {' or '.join(map(repr, values))}, got {brief(value)}.")
        return value

    def needed(self, name: str, value: Value | None) -> Value:
        """The value, or an error where it is not given."""
        if value is None:
            self.refuse(name, f"{self.where}{name} is missing; give it.")
        return value


def brief(text: str) -> str:
    """A client's word for a sentence; it may have sent a book."""
    return short(text[:100])


def check_unicode(text: str, where: str) -> None:
    """``RequestError`` for halves of characters, which JSON can hold and no text can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where} holds half a character (a lone surrogate); send whole ones.", where) from None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
