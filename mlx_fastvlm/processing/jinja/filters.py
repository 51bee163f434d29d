"""jinja2's filters and tests, as far as chat templates use them.

Each is told its value, the budget, and its arguments.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any

from ..provenance import changed
from .methods import indented, replace, strip
from .printing import to_json, to_text
from .values import (
    ITERABLES,
    NUMBERS,
    Budget,
    Function,
    Refused,
    Undefined,
    compare,
    contains,
    equal,
    item,
    iterate,
    joined,
    key,
    kind,
    length,
    number,
    part,
    unneeded,
)


def apply_filter(name: str, value: Any, budget: Budget, *args: Any, **named: Any) -> Any:
    """``value | name(...)``."""
    if name not in FILTERS:
        raise unneeded(f"the filter {name[:50]}")
    return FILTERS[name](value, budget, *args, **named)


def holds(name: str, value: Any, budget: Budget, *args: Any, **named: Any) -> bool:
    """``value is name(...)``."""
    if name not in TESTS:
        raise unneeded(f"the test {name[:50]}")
    return bool(TESTS[name](value, budget, *args, **named))


# Texts


def _changing(change: Callable[[str], str]) -> Callable[..., str]:
    """A filter that makes another text of a whole one."""

    def apply(value: Any, budget: Budget) -> str:
        text = to_text(value, budget)
        budget.spend(3 * len(text))  # one letter can become three
        return changed(text, change)

    return apply


def _title(text: str) -> str:
    """Words with a capital letter each, where words begin as jinja2 has it."""
    return "".join(word[0].upper() + word[1:].lower() for word in re.split(r"([-\s({\[<]+)", text) if word)


def _trim(value: Any, budget: Budget, chars: str | None = None) -> str:
    return strip(to_text(value, budget), budget, chars)


def _replace(value: Any, budget: Budget, old: Any, new: Any, count: int | None = None) -> str:
    texts = [to_text(given, budget) for given in (value, old, new)]
    return replace(texts[0], budget, texts[1], texts[2], -1 if count is None else count)


def _indent(value: Any, budget: Budget, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(value, Undefined) or not isinstance(value, str):
        raise Refused(value.why if isinstance(value, Undefined) else f"it indents {kind(value)}")
    return indented(value, budget, width, first, blank)


def _join(value: Any, budget: Budget, d: Any = "", attribute: Any = None) -> str:
    texts = [to_text(element, budget) for element in _looked_up(value, budget, attribute)]
    between = to_text(d, budget)
    return joined((text for i, one in enumerate(texts) for text in ((between, one) if i else (one,))), budget)


# Numbers


def _int(value: Any, budget: Budget, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, Undefined):
        raise Refused(value.why)
    try:
        return number(int(value, base) if isinstance(value, str) else int(value))
    except (TypeError, ValueError):
        try:
            return number(int(float(value)))
        except (TypeError, ValueError, OverflowError):
            return default


def _float(value: Any, budget: Budget, default: Any = 0.0) -> Any:
    if isinstance(value, Undefined):
        raise Refused(value.why)
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _round(value: Any, budget: Budget, precision: int = 0, method: str = "common") -> Any:
    if not 0 <= number(precision) <= 15:
        raise Refused("it rounds to something else than 0 to 15 digits")
    if method == "common":
        return round(number(value), precision)
    rounded = {"ceil": math.ceil, "floor": math.floor}[method](number(value) * 10**precision)
    return number(rounded) / 10**precision


def _sum(value: Any, budget: Budget, attribute: Any = None, start: Any = 0) -> Any:
    total = number(start)
    for element in _looked_up(value, budget, attribute):
        total = number(total + number(element))
    return total


# Sequences


def _getter(attribute: Any) -> Callable[[Any], Any]:
    """What ``attribute="a.b.0"`` takes from an element."""
    if attribute is None:
        return lambda element: element
    names = attribute.split(".") if isinstance(attribute, str) else [attribute]
    path = [int(name) if isinstance(name, str) and name.isdigit() else name for name in names]

    def get(element: Any) -> Any:
        for name in path:
            element = item(element, name)
        return element

    return get


def _looked_up(value: Any, budget: Budget, attribute: Any) -> Iterator[Any]:
    return map(_getter(attribute), iterate(value, budget))


def _map(value: Any, budget: Budget, *args: Any, **named: Any) -> Iterator[Any]:
    if args:
        for element in iterate(value, budget):
            yield apply_filter(args[0], element, budget, *args[1:], **named)
        return
    get, default = _getter(named["attribute"]), named.get("default")
    for element in iterate(value, budget):
        found = get(element)
        yield default if default is not None and isinstance(found, Undefined) else found


def _choosing(wanted: bool, by_attribute: bool) -> Callable[..., Iterator[Any]]:
    def choose(value: Any, budget: Budget, *args: Any, **named: Any) -> Iterator[Any]:
        get, args = (_getter(args[0]), args[1:]) if by_attribute else (_getter(None), args)
        for element in iterate(value, budget):
            found = get(element)
            if (holds(args[0], found, budget, *args[1:], **named) if args else bool(found)) is wanted:
                yield element

    return choose


def _folded(value: Any, case_sensitive: bool) -> Any:
    return value if case_sensitive or not isinstance(value, str) else str.lower(value)


def _sort(
    value: Any, budget: Budget, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    get = _getter(attribute)
    return _sorted(list(iterate(value, budget)), lambda element: _folded(get(element), case_sensitive), reverse, budget)


def _sorted(values: list[Any], by: Callable[[Any], Any], reverse: bool, budget: Budget) -> list[Any]:
    keys = [by(value) for value in values]
    budget.step(len(keys) * len(keys).bit_length())
    budget.spend(sum(len(one) for one in keys if isinstance(one, str)) * len(keys).bit_length())
    if not all(isinstance(one, str) for one in keys):
        keys = [number(one) for one in keys]
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=bool(reverse))
    return [values[i] for i in order]


def _dictsort(
    value: Any, budget: Budget, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[Any]:
    if not isinstance(value, dict):
        raise Refused(f"it sorts {kind(value)} as a dict")
    place = {"key": 0, "value": 1}[by]
    return _sorted(list(value.items()), lambda entry: _folded(entry[place], case_sensitive), reverse, budget)


def _extreme(better: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    def find(value: Any, budget: Budget, case_sensitive: bool = False, attribute: Any = None) -> Any:
        get, best = _getter(attribute), None
        for element in iterate(value, budget):
            folded = _folded(get(element), case_sensitive)
            if best is None or compare(better, folded, best[0], budget):
                best = (folded, element)
        return Undefined("there is no largest or smallest of nothing") if best is None else best[1]

    return find


def _unique(value: Any, budget: Budget, case_sensitive: bool = False, attribute: Any = None) -> Iterator[Any]:
    get, seen = _getter(attribute), set()
    for element in iterate(value, budget):
        folded = key(_folded(get(element), case_sensitive))
        if isinstance(folded, str):
            budget.read(folded)
        if folded not in seen:
            seen.add(folded)
            yield element


def _first(value: Any, budget: Budget) -> Any:
    return next(iterate(value, budget), Undefined("there is no first element"))


def _last(value: Any, budget: Budget) -> Any:
    if isinstance(value, Undefined) or not length(value):
        return Undefined("there is no last element")
    return item(value, -1) if isinstance(value, (str, list, tuple, range)) else list(iterate(value, budget))[-1]


def _reverse(value: Any, budget: Budget) -> Any:
    if isinstance(value, str):
        return part(value, None, None, -1, budget)
    if isinstance(value, (GeneratorType, Undefined)):
        return list(iterate(value, budget))[::-1]
    length(value)  # else it is no sequence
    return (element for element in reversed(value))


def _items(value: Any, budget: Budget) -> Iterator[Any]:
    if not isinstance(value, (dict, Undefined)):
        raise Refused(f"it takes the items of {kind(value)}")
    yield from () if isinstance(value, Undefined) else value.items()


def _default(value: Any, budget: Budget, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": lambda value, budget: abs(number(value)),
    "capitalize": _changing(str.capitalize),
    "default": _default,
    "dictsort": _dictsort,
    "first": _first,
    "float": _float,
    "indent": _indent,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _last,
    "length": lambda value, budget: length(value),
    "list": lambda value, budget: list(iterate(value, budget)),
    "lower": _changing(str.lower),
    "map": _map,
    "max": _extreme(operator.gt),
    "min": _extreme(operator.lt),
    "reject": _choosing(False, False),
    "rejectattr": _choosing(False, True),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "select": _choosing(True, False),
    "selectattr": _choosing(True, True),
    "sort": _sort,
    "string": lambda value, budget: to_text(value, budget),
    "sum": _sum,
    "title": _changing(_title),
    "tojson": to_json,
    "trim": _trim,
    "unique": _unique,
    "upper": _changing(str.upper),
}
FILTERS |= {"count": FILTERS["length"], "d": FILTERS["default"]}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _comparing(by: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    return lambda value, budget, other: compare(by, value, other, budget)


def _read(value: Any, budget: Budget) -> str:
    text = to_text(value, budget)
    budget.read(text)
    return text


TESTS: dict[str, Callable[..., Any]] = {
    "boolean": lambda value, budget: isinstance(value, bool),
    "callable": lambda value, budget: isinstance(value, Function),
    "defined": lambda value, budget: not isinstance(value, Undefined),
    "divisibleby": lambda value, budget, num: number(value) % number(num) == 0,
    "eq": lambda value, budget, other: equal(value, other, budget),
    "even": lambda value, budget: number(value) % 2 == 0,
    "false": lambda value, budget: value is False,
    "float": lambda value, budget: isinstance(value, float),
    "ge": _comparing(operator.ge),
    "gt": _comparing(operator.gt),
    "in": lambda value, budget, seq: contains(seq, value, budget),
    "integer": lambda value, budget: _is_whole(value),
    "iterable": lambda value, budget: isinstance(value, (str, Undefined, *ITERABLES)),
    "le": _comparing(operator.le),
    "lower": lambda value, budget: _read(value, budget).islower(),
    "lt": _comparing(operator.lt),
    "mapping": lambda value, budget: isinstance(value, dict),
    "ne": lambda value, budget, other: not equal(value, other, budget),
    "none": lambda value, budget: value is None,
    "number": lambda value, budget: isinstance(value, NUMBERS),
    "odd": lambda value, budget: number(value) % 2 == 1,
    "sameas": lambda value, budget, other: value is other,
    "sequence": lambda value, budget: isinstance(value, (str, list, tuple, dict, range, Undefined)),
    "string": lambda value, budget: isinstance(value, str),
    "true": lambda value, budget: value is True,
    "undefined": lambda value, budget: isinstance(value, Undefined),
    "upper": lambda value, budget: _read(value, budget).isupper(),
}
TESTS |= {
    alias: TESTS[name]
    for name, aliases in {
        "eq": ("==", "equalto"),
        "ne": ("!=",),
        "gt": (">", "greaterthan"),
        "ge": (">=",),
        "lt": ("<", "lessthan"),
        "le": ("<=",),
    }.items()
    for alias in aliases
}
