"""Parquet files of so many records each; what is not enough for one yet lies in a file of lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_file
from .lines import Keep, LineSink, Record
from .parquet import pyarrow_parquet
from .parts import clean_up, hidden, next_part, parts_of

if TYPE_CHECKING:
    from .items import Item

COLUMNS = {
    "key": "string",
    "as": "string",
    "text": "string",
    "json": "string",
    "choice": "string",
    "probabilities": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "generation_tokens": "int64",
    "image": "string",
    "error": "string",
    "model": "string",
    "prompt": "string",
}
_JSON = ("json", "probabilities")


class ParquetSink:
    """Records as parquet files beside ``path``, of ``records_per_file`` each, the last one of a run excepted.

    A killed process loses nothing: its last records are lines still, and become a file in the next run.
    """

    keeps_images = False

    def __init__(self, path: Path, records_per_file: int) -> None:
        self._path, self._most = path, records_per_file
        self._parquet = pyarrow_parquet()
        self._pending = LineSink(hidden(path, "pending.jsonl"))
        try:
            clean_up(path)
            self._count = sum(1 for _ in self._pending.records())
            last = parts_of(path)[-1:]
            if self._count and last:  # the process may have ended between the two halves of _seal
                sealed = {record["key"] for record in self._read(last[0])}
                self._pending.keep(lambda record: record["key"] not in sealed)
                self._count = sum(1 for _ in self._pending.records())
        except BaseException:
            self._pending.close()
            raise

    def records(self) -> Iterator[Record]:
        for part in parts_of(self._path):
            yield from self._read(part)
        yield from self._pending.records()

    def _read(self, part: Path) -> Iterator[Record]:
        try:
            with self._parquet.ParquetFile(part) as file:
                if set(file.schema_arrow.names) != set(COLUMNS):
                    raise ValueError
                for batch in file.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        given = {name: value for name, value in row.items() if value is not None}
                        yield {name: json.loads(value) if name in _JSON else value for name, value in given.items()}
        except Exception as error:  # whatever Arrow's readers raise
            if not isinstance(error, (ValueError, OSError)):
                raise
            raise ValueError(f"{part} holds something other than captions; give another --output.") from None

    def keep(self, wanted: Keep) -> None:
        for part in parts_of(self._path):
            records = list(self._read(part))
            kept = [record for record in records if wanted(record)]
            if not kept:
                part.unlink()
            elif len(kept) < len(records):
                self._write(part, kept)
        self._pending.keep(wanted)
        self._count = sum(1 for _ in self._pending.records())

    def write(self, item: Item, record: Record) -> None:
        self._pending.write(item, record)
        self._count += 1
        if self._count >= self._most:
            self._seal()

    def _seal(self) -> None:
        self._write(next_part(self._path), list(self._pending.records()))
        self._pending.keep(lambda _: False)
        self._count = 0

    def _write(self, part: Path, records: list[Record]) -> None:
        import pyarrow  # noqa: PLC0415  an extra, and slow to import

        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
        table = pyarrow.Table.from_pylist([_row(record) for record in records], schema)
        with atomic_file(part) as unfinished:
            self._parquet.write_table(table, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())

    def finish(self) -> None:
        if self._count:
            self._seal()

    def close(self) -> None:
        self._pending.remove_if_empty()
        self._pending.close()


def _row(record: Record) -> dict[str, Any]:
    row = {name: json.dumps(value) if name in _JSON else value for name, value in record.items()}
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }
