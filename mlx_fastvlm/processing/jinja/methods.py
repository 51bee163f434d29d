"""The methods of texts and dicts that chat templates use.

Each is told its object, the budget, and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..provenance import changed, concatenated, cut
from .values import Budget, Function, Namespace, Refused, Undefined, iterate, joined, key, kind, unneeded

_STRIPPED = 100  # characters that strip() is told at most: its time is the product of both lengths

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def attribute(value: Any, name: str, budget: Budget) -> Any:
    """``value.name``: a method, an entry, or ``Undefined``."""
    if isinstance(value, Undefined):
        raise Refused(value.why)
    if isinstance(value, Namespace):
        return value.values.get(name, Undefined(f"there is no {name[:50]!r}"))
    methods = _TEXT if isinstance(value, str) else _DICT if isinstance(value, dict) else {}
    if name in methods:
        method = methods[name]
        return Function(name, lambda budget, *args, **named: method(value, budget, *args, **named))
    if hasattr(type(value), name):
        raise unneeded(f"{name[:50]}()")
    return value[name] if isinstance(value, dict) and name in value else Undefined(f"there is no {name[:50]!r}")


def _is_text(*values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise Refused(f"it uses {kind(value)} where a text is needed")


def _asking(name: str) -> Callable[..., Any]:
    """A method whose result is no text."""

    def ask(text: str, budget: Budget, *args: Any) -> Any:
        budget.read(text, *(arg for arg in args if isinstance(arg, str)))
        return getattr(str, name)(text, *args)

    return ask


def _changing(name: str) -> Callable[..., str]:
    """A method that makes another text of a whole one."""

    def change(text: str, budget: Budget) -> str:
        budget.spend(3 * len(text))  # one letter can become three
        return changed(text, getattr(str, name))

    return change


def _starting(name: str) -> Callable[..., bool]:
    def starts(text: str, budget: Budget, wanted: Any) -> bool:
        choices = wanted if isinstance(wanted, tuple) else (wanted,)
        _is_text(*choices)
        budget.step(len(choices))
        budget.read(*choices)
        return bool(getattr(str, name)(text, wanted))

    return starts


def strip(text: str, budget: Budget, characters: str | None = None, left: bool = True, right: bool = True) -> str:
    if characters is not None:
        _is_text(characters)
        if len(characters) > _STRIPPED:
            raise Refused(f"it strips more than {_STRIPPED} characters")
    budget.read(text)
    start = len(text) - len(str.lstrip(text, characters)) if left else 0
    return cut(text, start, max(start, len(str.rstrip(text, characters)) if right else len(text)))


def _lstrip(text: str, budget: Budget, characters: str | None = None) -> str:
    return strip(text, budget, characters, right=False)


def _rstrip(text: str, budget: Budget, characters: str | None = None) -> str:
    return strip(text, budget, characters, left=False)


def _removeprefix(text: str, budget: Budget, prefix: str) -> str:
    _is_text(prefix)
    budget.read(text)
    return cut(text, len(prefix), len(text)) if str.startswith(text, prefix) else text


def _removesuffix(text: str, budget: Budget, suffix: str) -> str:
    _is_text(suffix)
    budget.read(text)
    return cut(text, 0, len(text) - len(suffix)) if suffix and str.endswith(text, suffix) else text


def _parts(text: str, parts: Iterable[str], gap: int | None, budget: Budget) -> list[str]:
    """Parts of a text that Python has cut, with their authors: ``gap`` characters lie between, None for white space."""
    found, place = [], 0
    for part in parts:
        budget.step()
        if gap is None:
            place = str.find(text, part, place)
        budget.cut(text)
        found.append(cut(text, place, place + len(part)))
        place += len(part) + (gap or 0)
    return found


def _splitting(name: str) -> Callable[..., list[str]]:
    def split(text: str, budget: Budget, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        budget.read(text)
        if sep is not None:
            _is_text(sep)
        most = budget.steps + 1  # no more parts than can be handled are made
        parts = getattr(str, name)(text, sep, most if maxsplit < 0 else min(maxsplit, most))
        return _parts(text, parts, None if sep is None else len(sep), budget)

    return split


def _splitlines(text: str, budget: Budget, keepends: bool = False) -> list[str]:
    budget.read(text)
    budget.step(sum(map(str(text).count, _LINE_ENDS)))
    whole = _parts(text, str.splitlines(text, True), 0, budget)
    lines = str.splitlines(text, bool(keepends))
    return [cut(part, 0, len(line)) for part, line in zip(whole, lines)]


def _partitioning(name: str) -> Callable[..., tuple[str, ...]]:
    def partition(text: str, budget: Budget, sep: str) -> tuple[str, ...]:
        _is_text(sep)
        budget.read(text)
        return tuple(_parts(text, getattr(str, name)(text, sep), 0, budget))

    return partition


def replace(text: str, budget: Budget, old: str, new: str, count: int = -1) -> str:
    _is_text(old, new)
    budget.read(text)
    if not old:
        raise Refused("it replaces nothing by something")
    times = str.count(text, old)
    times = times if count < 0 else min(times, count)
    budget.step(times)
    budget.spend(times * len(new))
    kept = _parts(text, str.split(text, old, times), len(old), budget) if times else [text]
    return joined(_alternating(kept, new), budget)


def _join(text: str, budget: Budget, values: Any) -> str:
    texts = list(iterate(values, budget))
    _is_text(*texts)
    return joined(_alternating(texts, text), budget)


def _alternating(texts: Iterable[str], between: str) -> Iterable[str]:
    for i, text in enumerate(texts):
        if i:
            yield between
        yield text


def indented(text: str, budget: Budget, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """jinja2's ``indent``: a text or spaces before each line but the first and blank ones."""
    if not isinstance(width, str) and not 0 <= width <= 64:
        raise Refused("it indents by more than 64 spaces")
    before = width if isinstance(width, str) else " " * width
    written: list[str] = []
    for i, line in enumerate(_splitlines(concatenated([text, "\n"]), budget)):
        budget.spend(len(before))
        written += ["\n"] if i else []
        written += [before] if (first if i == 0 else blank or line) else []
        written.append(line)
    return joined(written, budget)


def _get(value: dict[Any, Any], budget: Budget, name: Any, default: Any = None) -> Any:
    return value.get(key(name), default)


_TEXT: dict[str, Callable[..., Any]] = {
    **{name: _asking(name) for name in (
        "count", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric",
        "isspace", "istitle", "isupper", "rfind", "rindex",
    )},
    **{name: _changing(name) for name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper")},
    **{name: _starting(name) for name in ("startswith", "endswith")},
    **{name: _splitting(name) for name in ("split", "rsplit")},
    **{name: _partitioning(name) for name in ("partition", "rpartition")},
    "join": _join, "lstrip": _lstrip, "removeprefix": _removeprefix, "removesuffix": _removesuffix, "replace": replace,
    "rstrip": _rstrip, "splitlines": _splitlines, "strip": strip,
}  # fmt: skip

_DICT: dict[str, Callable[..., Any]] = {
    "get": _get,
    "items": lambda value, budget: value.items(),
    "keys": lambda value, budget: value.keys(),
    "values": lambda value, budget: value.values(),
}
