"""The functions that a template can call by their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ..provenance import changed
from .printing import to_text
from .values import Budget, Namespace, Refused, kind, number, unneeded


def _range(budget: Budget, *bounds: Any) -> range:
    values = range(*map(number, bounds))
    if len(values) > 100_000:
        raise Refused("it takes too many steps")
    return values


def _dict(budget: Budget, *given: Any, **named: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for one in given:
        if not isinstance(one, dict):
            raise Refused(f"it makes a dict of {kind(one)}")
        budget.step(len(one))
        values |= one
    return values | named


def _raise_exception(budget: Budget, message: Any = "") -> None:
    raise Refused(to_text(message, budget))


def _strftime_now(budget: Budget, how: str) -> str:
    """transformers' clock. C's strftime pads to any width that it is told, so widths are left out."""
    if not isinstance(how, str) or not re.fullmatch(r"(?:[^%]|%-?[A-Za-z%]){0,100}", how):
        raise unneeded("such a form of a date")
    return changed(how, datetime.now().strftime)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dict": _dict,
    "namespace": lambda budget, **values: Namespace(values),
    "raise_exception": _raise_exception,
    "range": _range,
    "strftime_now": _strftime_now,
}
