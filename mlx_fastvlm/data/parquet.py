"""Rows of a parquet file: images as bytes, as Hugging Face's ``{bytes, path}``, or as paths and URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import one_line
from .items import SAMPLE_LIMIT, Item, is_url

IMAGE_COLUMNS = (
    *("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes"),
    *("image_path", "path", "file", "file_name", "url", "image_url"),
)
ROWS = 16  # decoded at a time: a dictionary can make gigabytes of few bytes


def pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet  # noqa: PLC0415  an extra, and slow to import
    except ImportError:
        raise ValueError('Parquet needs one more package: pip install "mlx-fastvlm[parquet]".') from None
    return pyarrow.parquet


def parquet_items(path: Path, name: str) -> Iterator[Item]:
    """A file's rows; keys are ``name`` and the column ``key``, or the row's number. A broken file is one item's error.

    Columns ``key`` and ``prompt`` are taken where they are there. A path must lie below the file's own folder, and a
    URL must lead to a public address: the file may be a stranger's.
    """
    parquet = pyarrow_parquet()
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False) as file:
            columns = file.schema_arrow.names
            image = next((column for column in IMAGE_COLUMNS if column in columns), None)
            if image is None:
                raise ValueError(f"has no image column; it has {one_line(', '.join(columns))}")
            wanted = [column for column in (image, "key", "prompt") if column in columns]
            for batch in file.iter_batches(batch_size=ROWS, columns=wanted):
                for row in batch.to_pylist():
                    key = row.get("key")
                    yield row_item(row, f"{name}/{number if key is None else key}", image, path.parent)
                    number += 1
    except Exception as error:  # whatever Arrow's readers raise for a damaged file
        yield Item(name, error=f"{one_line(name)} can't be read past row {number} ({_line(error)}); get it again.")


def row_item(row: dict[str, Any], key: str, column: str, folder: Path) -> Item:
    """The image in a row's column, under a key; a stranger's path or URL leads nowhere but where it may."""
    value, prompt = row[column], row.get("prompt")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if prompt is not None and not isinstance(prompt, str):
        return Item(key, error="The prompt is not text; correct the prompt column.")
    if isinstance(value, bytes):
        if len(value) > SAMPLE_LIMIT:
            return Item(key, error=f"The image has more than {SAMPLE_LIMIT >> 20} MB; scale it down first.")
        return Item(key, value, prompt)
    if not isinstance(value, str) or not value:
        return Item(key, error=f"The row has no image in its column {column}; leave it, or add one.")
    if is_url(value):
        return Item(key, value, prompt, public=True)
    try:
        if not (folder / value).resolve().is_relative_to(folder.resolve()):
            return Item(key, error=f"{one_line(value)} leads out of the parquet file's folder; put the image there.")
    except (OSError, ValueError, RuntimeError):
        return Item(key, error=f"{one_line(value)} is not a path; correct it.")
    return Item(key, folder / value, prompt)


def _line(error: Exception) -> str:
    return one_line(" ".join(str(error).split())) or type(error).__name__
