"""Lists of images: JSON lines, CSV, or a path or URL a line; a file or standard input."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import one_line
from .items import Item, is_url

IMAGE_FIELDS = ("image", "path", "file", "file_name", "url")
LINE_LIMIT = 2**20  # bytes


def manifest_items(path: Path, name: str) -> Iterator[Item]:
    """The images that a ``.jsonl`` or ``.csv`` file lists.

    Each entry has an image (one of ``IMAGE_FIELDS``: a path, below the manifest's folder if it is relative, or a URL),
    and may have a ``prompt`` and a ``key``; without one, the image as it stands there is the key. An entry that can't
    be read is an item with an error.
    """
    csv.field_size_limit(LINE_LIMIT)
    with path.open("rb") as file:
        lines = _lines(file)
        if path.suffix.lower() == ".csv":
            yield from _table(lines, path.parent, name)
        else:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _entry(line, path.parent, f"{name}:{number}")


def listed_items(file: BinaryIO | None = None) -> Iterator[Item]:
    """The same from standard input: JSON lines, or a path or URL a line."""
    if file is None:
        if sys.stdin is None:
            raise ValueError("Standard input is closed; give a folder or a manifest.")
        file = sys.stdin.buffer
    for number, line in enumerate(_lines(file), 1):
        text = line.rstrip("\r\n")
        if text.lstrip().startswith("{"):
            yield _entry(text, Path(), f"stdin:{number}")
        elif text.strip():
            yield _image({"image": text}, Path(), f"stdin:{number}")


def _lines(file: BinaryIO) -> Iterator[str]:
    first = True
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise ValueError(f"A line of the manifest has more than {LINE_LIMIT >> 20} MB; it lists no images.")
        yield line.removeprefix(b"\xef\xbb\xbf" if first else b"").decode("utf-8", "surrogateescape")
        first = False


def _table(lines: Iterator[str], folder: Path, name: str) -> Iterator[Item]:
    try:
        for number, row in enumerate(csv.DictReader(lines, strict=True), 2):
            yield _image({key: value for key, value in row.items() if value != ""}, folder, f"{name}:{number}")
    except csv.Error as error:
        yield Item(
            name, error=f"{one_line(name)} can't be read to its end as CSV ({one_line(str(error))}); correct it."
        )


def _entry(line: str, folder: Path, place: str) -> Item:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        return Item(place, error=f"{one_line(place)} is not a JSON object; correct the line.")
    return _image(entry, folder, place)


def _image(entry: dict[Any, Any], folder: Path, place: str) -> Item:
    image = next((entry[name] for name in IMAGE_FIELDS if entry.get(name) is not None), None)
    if not isinstance(image, str) or not image or "\0" in image:
        return Item(place, error=f"{one_line(place)} names no image; give it one as {', '.join(IMAGE_FIELDS)}.")
    key, prompt = entry.get("key", image), entry.get("prompt")
    if not isinstance(key, (str, int)) or not isinstance(prompt, (str, type(None))):
        return Item(place, error=f"{one_line(place)} has a key or prompt that is not text; correct it.")
    source: Any = image if is_url(image) else folder / image
    return Item(str(key), source, prompt)
