"""Functions that take the fields of a dataclass as ``**options``, and such as know what other libraries' users type."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from .errors import UsageError, short

Function = TypeVar("Function", bound=Callable[..., Any])


def lists_fields(options: Any, but: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Have ``help()`` and completion list a dataclass's fields in place of a function's ``**options``.

    Those that the function has as parameters of its own are left out, and those in ``but``. ``help()`` also shows what
    the dataclass says of its fields.
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
        if options.__doc__:  # not there under python -OO
            explained = inspect.cleandoc(options.__doc__).partition("Attributes:\n")[2].partition("\n\n")[0]
            described.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{explained}\n".lstrip()
        return function

    return decorate


ANY: tuple[Any, ...] = ()  # in place of values: each is as good as none


def knows_habits(habits: Mapping[str, tuple[tuple[Any, ...], str]]) -> Callable[[Function], Function]:
    """Have a function take keywords of the library that its users come from.

    Args:
        habits: by keyword, the values that ask for what is done in any case, and what to do about another.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def knowing(*arguments: Any, **keywords: Any) -> Any:
            for name in [name for name in keywords if name in habits]:
                value = keywords.pop(name)
                fine, advice = habits[name]
                if fine is not ANY and not any(value is one or value == one for one in fine):
                    raise UsageError(f"There is no {name}={short(value)} here; {advice}.")
            return function(*arguments, **keywords)

        return cast(Function, knowing)

    return decorate
