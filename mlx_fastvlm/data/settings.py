"""What an output was made with: kept beside it, so that nobody mixes the answers to two questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError, short
from ..files import atomic_file, read_json, write_json

Settings = dict[str, Any]  # name of what can differ -> its value, as JSON has it


def settings_file(output: Path) -> Path:
    return output.with_name(f".{output.name}.settings.json")


def plain(settings: Settings) -> Settings:
    """The settings as they come back from JSON; what it has no word for, by its name."""
    text = json.dumps(settings, default=lambda value: getattr(value, "__qualname__", type(value).__name__))
    read: Settings = json.loads(text)
    return read


def read_settings(output: Path, name: str | None) -> Settings | None:
    """Those of an output, or of what was appended to it as ``name``; None where there are none."""
    file = settings_file(output)
    if not file.is_file():
        return None
    runs = read_json(file).get("runs")
    settings = runs.get(name or "") if isinstance(runs, dict) else None
    return settings if isinstance(settings, dict) else None


def write_settings(output: Path, name: str | None, settings: Settings) -> None:
    file = settings_file(output)
    runs = read_json(file).get("runs", {}) if file.is_file() else {}
    with atomic_file(file) as unfinished:
        write_json(unfinished, {"runs": {**runs, name or "": settings}})


def check_same(output: Path, before: Settings, now: Settings) -> None:
    """``UsageError`` that names what differs."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise UsageError(
                f"{output} was made with {name} {short(before.get(name))}, and now it is {short(now.get(name))}; give "
                "--overwrite, --append-as NAME or another --output."
            )
