"""Values of a configuration: what they may be, since they may come from a stranger, and how they are picked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import short

# What no model comes near. A stranger's config could ask for a trillion layers, and making them would take forever.
MOST = {"layers": 1000, "width": 2**20, "vocabulary": 2**24, "pixels": 4096}

Shape = TypeVar("Shape")


def check_whole(owner: str, name: str, value: Any, most: int) -> None:
    """``ValueError`` unless a setting is a whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{owner}: {name} must be a whole number from 1 to {most}, got {short(value)}.")


def check_number(owner: str, name: str, value: Any) -> None:
    """``ValueError`` unless a setting is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise ValueError(f"{owner}: {name} must be a positive number, got {short(value)}.")


def check_kernel(owner: str, name: str, side: Any, least: int = 1) -> None:
    """``ValueError`` unless a setting is the side of a kernel that has a middle."""
    check_whole(owner, name, side, 63)
    if side % 2 == 0 or side < least:
        raise ValueError(f"{owner}: {name} must be an odd number of pixels from {least}, got {side}.")


def pick(cls: type[Shape], values: dict[str, Any]) -> Shape:
    """``cls`` from those of ``values`` that it has a field for; null means the default."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # it is a dataclass
    try:
        return cls(**{name: value for name, value in values.items() if name in known and value is not None})
    except TypeError as error:
        raise ValueError(f"config.json does not describe a {cls.__name__} ({error}).") from None


def without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The others of ``values``."""
    keys = set(keys)
    return {key: value for key, value in values.items() if key not in keys}


def first(values: dict[str, Any], *names: str, default: Any = None) -> Any:
    """The first of ``names`` that is set."""
    return next((values[name] for name in names if values.get(name) is not None), default)


def as_json(value: Any) -> Any:
    """The same with lists for tuples, as a file would say it; Python's callers may write either."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_ids(value: Any) -> list[int]:
    """Token ids as files state them: one, several, or none (null)."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
