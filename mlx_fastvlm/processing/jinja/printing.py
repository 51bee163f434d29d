"""Values as texts: as Python prints them, and as JSON. Texts in them keep their authors."""

from __future__ import annotations

import json
from typing import Any

from ..provenance import Piece, Text, changed, concatenated, pieces_of
from .values import NUMBERS, Budget, Refused, Undefined, joined, kind, number


def to_text(value: Any, budget: Budget) -> str:
    """A value as it is written into the prompt."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return ""
    printed: list[str] = []
    _print(value, printed, budget)
    return joined(printed, budget)


def _print(value: Any, printed: list[str], budget: Budget) -> None:
    """Python's ``repr``, in pieces."""
    budget.step()
    if value is None or isinstance(value, NUMBERS):
        printed.append(repr(value))
    elif isinstance(value, str):
        budget.read(value)
        quote = repr(str(value))[0]
        printed += [quote, changed(value, lambda text: repr(text)[1:-1]), quote]
    elif isinstance(value, (list, tuple)):
        start, end = "[]" if isinstance(value, list) else "()"
        printed.append(start)
        for i, element in enumerate(value):
            printed.append(", " if i else "")
            _print(element, printed, budget)
        printed.append("," + end if isinstance(value, tuple) and len(value) == 1 else end)
    elif isinstance(value, dict):
        printed.append("{")
        for i, (name, element) in enumerate(value.items()):
            printed.append(", " if i else "")
            _print(name, printed, budget)
            printed.append(": ")
            _print(element, printed, budget)
        printed.append("}")
    elif isinstance(value, Undefined):
        printed.append("Undefined")
    else:
        raise Refused(f"it writes {kind(value)} into the prompt")


def to_json(
    value: Any,
    budget: Budget,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | list[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' ``tojson``: ``json.dumps`` without HTML's escapes."""
    if indent is not None and not 0 <= number(indent) <= 16:
        raise Refused("it indents JSON by more than 16 spaces")
    between, colon = separators or (", " if indent is None else ",", ": ")
    if not isinstance(between, str) or not isinstance(colon, str):
        raise Refused("it separates JSON by something that is not text")
    writer = _Json(budget, bool(ensure_ascii), indent, between, colon, bool(sort_keys))
    writer.write(value, 1)
    return joined(writer.written, budget)


class _Json:
    """JSON, in pieces."""

    def __init__(
        self, budget: Budget, ensure_ascii: bool, indent: int | None, between: str, colon: str, sort_keys: bool
    ) -> None:
        self._budget, self._indent, self._between, self._colon = budget, indent, between, colon
        self._ensure_ascii, self._sort_keys = ensure_ascii, sort_keys
        self.written: list[str] = []

    def write(self, value: Any, level: int) -> None:
        """A value, whose elements are indented by ``level``."""
        self._budget.step()
        if value is None or isinstance(value, NUMBERS):
            self.written.append(json.dumps(value))
        elif isinstance(value, str):
            self.written.append(self._text(value))
        elif isinstance(value, (list, tuple)):
            self._lines("[]", [([], element) for element in value], level)
        elif isinstance(value, dict):
            names = sorted(value) if self._sort_keys else value
            self._lines("{}", [([self._name(name), self._colon], value[name]) for name in names], level)
        else:
            raise Refused(f"it makes JSON of {kind(value)}")

    def _lines(self, brackets: str, entries: list[tuple[list[str], Any]], level: int) -> None:
        self.written.append(brackets[0])
        for i, (name, element) in enumerate(entries):
            self.written += [self._between if i else "", self._newline(level), *name]
            self.write(element, level + 1)
        self.written += [self._newline(level - 1) if entries else "", brackets[1]]

    def _newline(self, level: int) -> str:
        if self._indent is None:
            return ""
        self._budget.spend(self._indent * level)
        return "\n" + " " * (self._indent * level)

    def _name(self, name: Any) -> str:
        return self._text(name if isinstance(name, str) else json.dumps(name))

    def _text(self, text: str) -> str:
        self._budget.read(text)
        inner = [Text([Piece(self._escaped(piece.text), piece.author)]) for piece in pieces_of(text)]
        return concatenated(['"', *inner, '"'])

    def _escaped(self, text: str) -> str:
        return json.dumps(str(text), ensure_ascii=self._ensure_ascii)[1:-1]
