"""Files of training data -> rows, each with its place for errors; and the images that they name."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image

from ..errors import one_line, short
from ..processing.images import FORMATS
from ..processing.sources import open_source
from .tables import ParquetTable, StoredImage, dataset_split, is_saved_dataset, table_rows

SPLITS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
SHARDS = "{}-[0-9]*-of-[0-9]*.parquet"  # as the hub has them
KINDS = (".jsonl", ".json", ".csv", ".parquet")
ImageSource = Path | str | StoredImage  # a file, a data: URI, or a table's
Row = tuple[str, dict[str, Any]]  # the file and the number in it, as errors say it; the content

csv.field_size_limit(2**24)


def split_rows(data: str | Path, split: str) -> tuple[Iterator[Row] | None, Path]:
    """The rows of a split, in order, None if there is no such split; and the folder that paths in them begin in.

    Args:
        data: a folder of files named for their splits, or one file, which is "train"; a folder that ``datasets`` has
            saved; or, where there is no such folder, the name of a data set on the hub, ``user/name``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are several files for it.
    """
    folder = Path(data).expanduser()
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(data)):
        return _dataset_rows(str(data), split), Path()
    if is_saved_dataset(folder):
        return _dataset_rows(folder, split), folder
    files = find_split(folder, split)
    return (row for file in files for row in read_rows(file)) if files else None, files[0].parent if files else folder


def _dataset_rows(data: Path | str, split: str) -> Iterator[Row] | None:
    table = dataset_split(data, split)
    return None if table is None else table_rows(table)


def find_split(data: Path, split: str) -> list[Path]:
    """The file of a split in a folder, or the hub's numbered parquet files; a file for a folder is its "train".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are several.
    """
    if data.is_file():
        return [data] if split == "train" else []
    if not data.is_dir():
        raise FileNotFoundError(
            f"{short(str(data))} is not a folder; give one with train.jsonl, and optionally valid.jsonl and test.jsonl."
        )
    found = [data / f"{name}{kind}" for name in SPLITS[split] for kind in KINDS if (data / f"{name}{kind}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{data} has {' and '.join(file.name for file in found)}; leave one.")
    if found:
        return found
    shards = (where.glob(SHARDS.format(name)) for name in SPLITS[split] for where in (data, data / "data"))
    return next((sorted(files) for files in map(list, shards) if files), [])


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file, in order: JSON lines, a JSON list (LLaVA's form), CSV with a line of names, or parquet.

    Raises:
        ValueError: it is of another kind, or a row is broken.
    """
    if file.suffix not in KINDS:
        raise ValueError(f"{file} is none of {', '.join(KINDS)}; write it as JSON lines.")
    try:
        yield from READERS[file.suffix](file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 ({error.reason}); convert it first.") from None


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{file.name}, row {number}"
                yield place, _an_object(_parsed(line, place), place)


def _json_list(file: Path) -> Iterator[Row]:
    rows = _parsed(file.read_text(encoding="utf-8"), file.name)
    if not isinstance(rows, list):
        raise ValueError(f"{file.name} holds no list; LLaVA's form is a list of objects, others are JSON lines.")
    for number, row in enumerate(rows, 1):
        place = f"{file.name}, row {number}"
        yield place, _an_object(row, place)


def _table(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        try:
            for number, row in enumerate(table, 2):  # below the line of names
                place = f"{file.name}, row {number}"
                if None in row or None in row.values():
                    raise ValueError(f"{place} doesn't have as many fields as the header; quote texts with commas.")
                yield place, dict(row)
        except csv.Error as error:
            raise ValueError(f"{file.name} is not CSV ({error}); write it as JSON lines.") from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON ({error}).") from None


def _an_object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is not a JSON object but {short(row)}.")
    return row


def _parquet(file: Path) -> Iterator[Row]:
    return table_rows(ParquetTable(file))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _table,
    ".parquet": _parquet,
}


def image_source(value: Any, folder: Path, place: str) -> ImageSource:
    """What a row calls an image, as a file: a path, relative to ``folder``, or itself for a ``data:`` URI or a table's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else. Nothing is ever fetched for training.
    """
    if isinstance(value, StoredImage):
        return value
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = value["path"]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}: an image is the path of a file, got {short(value)}.")
    if value.startswith("data:"):
        return value
    if value.lower().startswith(("http://", "https://")):
        raise ValueError(f"{place}: {one_line(value)} is a URL; download the images first, training reads only files.")
    path = folder / value
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # a name too long for the system; a zero byte
        exists = False
    if not exists:
        raise FileNotFoundError(f"{place}: {one_line(str(path))}: no such image; check the path.")
    return path


def check_image(source: ImageSource, place: str) -> None:
    """``ValueError`` unless a file begins as an image does that can be read; it is not decoded yet."""
    try:
        file, name = open_source(source)
        with file:
            try:
                PIL.Image.open(file, formats=FORMATS).close()
            except Exception:  # whatever Pillow makes of it
                raise ValueError(f"{name} is not an image that can be read; convert or remove it.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None
