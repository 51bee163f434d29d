"""Training data in Arrow's tables: parquet files, and Hugging Face data sets, from their hub or saved to a folder.

A row's image stays in its table until it is asked for, so that a data set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..data.parquet import pyarrow_parquet
from ..errors import one_line, short

AT_A_TIME = 16  # rows that are decoded: a dictionary can make gigabytes of few bytes
SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
SAVED = ("dataset_dict.json", "dataset_info.json")  # what datasets' save_to_disk leaves in a folder


class Table(Protocol):
    """Rows that are read best in order."""

    name: str

    def __len__(self) -> int: ...

    def row(self, number: int) -> dict[str, Any]:
        """A row, from 0, as Python's own types; any exception of Arrow's for a damaged one."""


@dataclass(frozen=True)
class StoredImage:
    """An image in a row of a table; with ``read``, as an open file has it."""

    table: Table = field(repr=False)
    number: int
    keys: tuple[str | int, ...]

    def read(self) -> bytes:
        """The bytes of its file."""
        value: Any = self.table.row(self.number)
        for key in self.keys:
            value = value[key]
        image: bytes = value["bytes"] if isinstance(value, dict) else value
        return image

    def __str__(self) -> str:
        return f"{self.table.name}, row {self.number + 1}: {'/'.join(map(str, self.keys))}"


def table_rows(table: Table) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table with their places, images as :class:`StoredImage` and what is null left out.

    Raises:
        ValueError: the table is damaged; from which row on, is said.
    """
    for number in range(len(table)):
        place = f"{table.name}, row {number + 1}"
        try:
            row = table.row(number)
        except Exception as error:  # whatever Arrow's readers raise for a damaged file
            raise ValueError(f"{place} can't be read ({_line(error)}); get the file again.") from None
        yield place, _plain(row, table, number, ())


def _plain(value: Any, table: Table, number: int, keys: tuple[str | int, ...]) -> Any:
    """A value without nulls, and with images in place of their bytes."""
    if isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)):
        return StoredImage(table, number, keys)
    if isinstance(value, dict):
        return {key: _plain(x, table, number, (*keys, key)) for key, x in value.items() if x is not None}
    if isinstance(value, list):
        return [_plain(x, table, number, (*keys, i)) for i, x in enumerate(value)]
    return value


class ParquetTable:
    """A parquet file.

    Raises:
        ValueError: pyarrow is missing, or the file is none of parquet.
    """

    def __init__(self, path: Path) -> None:
        self.name, self._path, parquet = path.name, path, pyarrow_parquet()
        try:
            self._file = parquet.ParquetFile(path, memory_map=False)
            metadata = self._file.metadata
            self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        except Exception as error:  # whatever Arrow's readers raise for a damaged file
            raise ValueError(f"{path.name} is not a parquet file ({_line(error)}); get it again.") from None
        self._batches: Iterator[Any] = iter(())
        self._start = 0
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return sum(self._groups)

    def row(self, number: int) -> dict[str, Any]:
        if number < self._start or number >= self._start + len(self._rows):
            if number != self._start + len(self._rows) or not self._rows:
                self._go_to_group_of(number)
            while number >= self._start + len(self._rows):
                self._start += len(self._rows)
                self._rows = next(self._batches).to_pylist()
        return self._rows[number - self._start]

    def _go_to_group_of(self, number: int) -> None:
        group = start = 0
        while number >= start + self._groups[group]:
            start += self._groups[group]
            group += 1
        rest = list(range(group, len(self._groups)))
        self._batches = self._file.iter_batches(batch_size=AT_A_TIME, row_groups=rest)
        self._start, self._rows = start, []


class DatasetTable:
    """A split of a data set of Hugging Face's ``datasets``; images are not decoded by it."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.name, self._dataset = name, dataset.with_format("arrow")
        self._start = 0
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, number: int) -> dict[str, Any]:
        if not self._start <= number < self._start + len(self._rows):
            self._start = number - number % AT_A_TIME
            self._rows = self._dataset[self._start : self._start + AT_A_TIME].to_pylist()
        return self._rows[number - self._start]


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets`` has saved one here."""
    return any((folder / name).is_file() for name in SAVED)


def dataset_split(data: Path | str, split: str) -> DatasetTable | None:
    """A split of a saved data set (a folder) or one of the hub (``user/name``); None where it has none.

    Raises:
        ValueError: ``datasets`` is missing, or can't read it.
    """
    try:
        import datasets  # noqa: PLC0415  an extra, and slow to import
    except ImportError:
        raise ValueError(
            f'{short(str(data))} is a data set of Hugging Face: pip install "mlx-fastvlm[datasets]".'
        ) from None
    saved = isinstance(data, Path)
    try:
        found = datasets.load_from_disk(str(data)) if saved else datasets.load_dataset(str(data))
    except Exception as error:  # whatever it and its network raise
        raise ValueError(
            f"{short(str(data))} can't be loaded as a data set ({_line(error)}); check its name."
        ) from None
    if isinstance(found, datasets.Dataset):
        return DatasetTable(found, Path(data).name) if split == "train" else None
    chosen = next((name for name in SPLITS[split] if name in found), None)
    return None if chosen is None else DatasetTable(found[chosen], chosen)


def _line(error: Exception) -> str:
    return one_line(" ".join(str(error).split()))[:200] or type(error).__name__
