"""Functions that take the fields of a dataclass as ``**options``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def lists_fields(options: Any, but: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Have ``help()`` and completion list a dataclass's fields in place of a function's ``**options``.

    Those that the function has as parameters of its own are left out, and those in ``but``.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        given = {*but, *(parameter.name for parameter in own)}
        listed = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(options)
            if field.name not in given
        ]
        described: Any = function
        described.__signature__ = signature.replace(parameters=[*own, *listed])
        return function

    return decorate
