"""Numbered files beside each other, each written whole: ``captions-00000.parquet``, ``captions-00001.parquet``."""

from __future__ import annotations

import re
from pathlib import Path


def named(path: Path, name: str | None) -> Path:
    """Where the records that were appended as ``name`` go: ``captions.NAME.parquet``."""
    return path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path


def hidden(path: Path, what: str) -> Path:
    """Something unfinished beside an output."""
    return path.with_name(f".{path.name}.{what}")


def parts_of(path: Path) -> list[Path]:
    """The parts of an output that are there, in order."""
    pattern = re.compile(rf"{re.escape(path.stem)}-(\d{{5,}}){re.escape(path.suffix)}")
    numbered = [(int(found[1]), file) for file in path.parent.iterdir() if (found := pattern.fullmatch(file.name))]
    return [file for _, file in sorted(numbered)]


def clean_up(path: Path) -> None:
    """Remove what writers of this output that were killed have left half written; its lock must be held."""
    left = re.compile(rf"\.{re.escape(path.stem)}(-\d{{5,}})?\.unfinished-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for file in path.parent.iterdir():
        if left.fullmatch(file.name) and file.is_file() and not file.is_symlink():
            file.unlink()


def next_part(path: Path) -> Path:
    last = parts_of(path)[-1:]
    number = int(last[0].stem.rpartition("-")[2]) + 1 if last else 0
    return path.with_name(f"{path.stem}-{number:05d}{path.suffix}")
