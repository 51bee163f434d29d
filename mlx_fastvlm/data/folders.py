"""Image files below a folder, and files that a pattern names."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .items import Item, image_suffixes


def find_images(folder: Path) -> list[Path]:
    """The image files of a folder and of those in it, by name; hidden ones are left out.

    Links are followed, and no folder is read twice, so that links in a circle end.

    Raises:
        FileNotFoundError: it is no folder.
    """
    return [item.source for item in folder_items(folder) if item.error is None]


def folder_items(folder: Path) -> list[Item]:
    """The same as items, whose keys are paths below the folder; each folder that can't be read is one
    with an error."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give one with images.")
    return list(_walk(folder, "", image_suffixes(), set()))


def _walk(folder: Path, below: str, known: set[str], visited: set[tuple[int, int]]) -> Iterator[Item]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Item(below or folder.name, error=f"The folder can't be read ({error.strerror}); check its permissions.")
        return
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        key = f"{below}/{entry.name}" if below else entry.name
        if _is(entry, os.DirEntry.is_dir):
            yield from _walk(folder / entry.name, key, known, visited)
        elif os.path.splitext(entry.name)[1].lower() in known and _is(entry, os.DirEntry.is_file):
            yield Item(key, folder / entry.name)


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    try:
        return kind(entry)
    except OSError:  # a link in a circle
        return False


def expand(pattern: str) -> list[tuple[str, Path]]:
    """The files that a pattern with ``*``, ``?``, ``[]`` or ``**`` names, each with its path below the fixed part."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    base = Path(*parts[:fixed]) if fixed else Path()
    rest = os.path.join(*parts[fixed:])
    found = sorted(glob.glob(rest, root_dir=base, recursive=True))
    files = [(Path(name).as_posix(), base / name) for name in found if (base / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{pattern} names no file; check the pattern.")
    return files
