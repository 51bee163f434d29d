"""Where a data set's images come from: any number of folders, patterns, archives and lists, as one row of items."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import UsageError, one_line
from .folders import expand, folder_items
from .items import Item, image_suffixes, is_url
from .manifests import listed_items, manifest_items
from .parquet import parquet_items, pyarrow_parquet
from .shards import Shard
from .tars import tar_items

_READERS: dict[str, Callable[[Path, str], Iterator[Item]]] = {
    ".tar": tar_items,
    ".parquet": parquet_items,
    ".jsonl": manifest_items,
    ".csv": manifest_items,
}
_PACKED = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip")


class Dataset:
    """The images of several sources, one after the other; every key once.

    Args:
        sources: folders, images, patterns, ``.tar``, ``.parquet``, ``.jsonl`` and ``.csv`` files, URLs, or ``-`` for
            standard input. All but standard input are looked for at once.
        shard: the part of them that is wanted.

    Attributes:
        duplicates: how many items were left out, because an earlier one has their key.
        first_duplicate: the first such key.

    Raises:
        FileNotFoundError: one is not there.
        UsageError: one is of no kind that is read.
    """

    def __init__(self, sources: Iterable[str | Path], shard: Shard = Shard()) -> None:  # noqa: B008  it can't be changed
        self._shard = shard
        self._parts = [part for source in sources for part in _parts(str(source))]
        if not self._parts:
            raise UsageError("There is no source; give a folder, a pattern, an archive or a manifest.")
        self._finished = self._counted = 0
        self.duplicates = 0
        self.first_duplicate: str | None = None

    def __iter__(self) -> Iterator[Item]:
        seen: set[str] = set()
        self._finished = self._counted = self.duplicates = 0
        for items in self._parts:
            for item in items():
                if not self._shard.has(item.key):
                    continue
                if item.key in seen:
                    self.duplicates += 1
                    self.first_duplicate = self.first_duplicate or item.key
                    continue
                seen.add(item.key)
                self._counted += 1
                yield item
            self._finished += 1

    def estimate(self) -> int | None:
        """About how many items there are: exact at the end, before that from the parts that were read."""
        if not self._finished:
            return None
        return max(self._counted, round(self._counted * len(self._parts) / self._finished))


Part = Callable[[], Iterable[Item]]


def _parts(source: str) -> list[Part]:
    """What a source is read by, piece by piece."""
    if source == "-":
        return [listed_items]
    if is_url(source):
        return [lambda: [Item(source, source)]]
    path = Path(source).expanduser()
    if path.is_dir():
        found = folder_items(path)
        if not found:
            raise FileNotFoundError(f"{path} has no images; for archives in it, give a pattern such as {path}/*.tar.")
        # Its images one by one, so that their number is known at once.
        return [lambda item=item: [item] for item in found]  # type: ignore[misc]  # it infers no lambda with a default
    if path.is_file():
        return [_part(path, path.name)]
    if glob.has_magic(source):
        return [_part(file, name) for name, file in expand(str(path))]
    raise FileNotFoundError(f"{one_line(source)}: no such file or folder; check the path.")


def _part(path: Path, name: str) -> Part:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        pyarrow_parquet()  # at once, where it is missing
    if reader := _READERS.get(suffix):
        return lambda: reader(path, name)
    if suffix in image_suffixes():
        return lambda: [Item(name, path)]
    if suffix in _PACKED:
        raise UsageError(f"{one_line(str(path))} is packed, and could become any size; unpack it first.")
    raise UsageError(
        f"{one_line(str(path))} is not a kind of file that is read; give a folder, images, or files ending in "
        f"{', '.join(_READERS)}."
    )
