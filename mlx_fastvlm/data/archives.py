"""Tar shards of images with their texts added, as webdataset reads them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import PIL.Image

from ..files import atomic_file, json_line
from .items import Item, image_suffixes
from .lines import SYNC, Keep, Record, write_whole
from .lock import lock
from .parts import clean_up, hidden, next_part, parts_of
from .tars import BLOCK, BrokenTar, read_members

BYTES_PER_FILE = 2**30
_END = bytes(2 * BLOCK)
_RECORD = "caption.json"
_OURS = ("txt", _RECORD)

Sample = tuple[str, int, int, Record]  # its name, where it begins and ends, and its record


class TarSink:
    """Samples as tar files beside ``path``: the image and whatever the source's archive had beside it, the text as
    ``.txt`` and the whole record as ``.caption.json``. Files that had these names are kept with ``original.`` before.

    The shard at hand is a hidden file that every sample is appended to in one piece.
    """

    keeps_images = True

    def __init__(self, path: Path, records_per_file: int) -> None:
        self._path, self._most = path, records_per_file
        self._lock_path = hidden(path, "lock")
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._file = -1
        self._synced = time.monotonic()
        try:
            lock(self._lock, self._lock_path)
            self._unfinished = hidden(path, "unfinished")
            for written in (path, self._unfinished):
                clean_up(written)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._unfinished, flags, 0o666)
            self._recover()
        except BaseException:
            self.close()
            raise

    def _recover(self) -> None:
        """Go on with the shard at hand, behind its last whole sample."""
        samples = list(_samples(self._unfinished, cut_off=True))
        self._stems, self._count = {stem for stem, *_ in samples}, len(samples)
        os.ftruncate(self._file, samples[-1][2] if samples else 0)

    def records(self) -> Iterator[Record]:
        for part in parts_of(self._path):
            yield from (record for _, _, _, record in _samples(part))
        yield from (record for _, _, _, record in _samples(self._unfinished))

    def keep(self, wanted: Keep) -> None:
        for part in [*parts_of(self._path), self._unfinished]:
            samples = list(_samples(part))
            kept = [sample for sample in samples if wanted(sample[3])]
            if len(kept) == len(samples):
                continue
            if part is self._unfinished:
                self._replace_unfinished(kept)
            elif not kept:
                part.unlink()
            else:
                with atomic_file(part) as unfinished, unfinished.open("wb") as file:
                    _copy(part, kept, file)
                    file.write(_END)
                    _sync_file(file)
        self._recover()

    def _replace_unfinished(self, kept: list[Sample]) -> None:
        with atomic_file(self._unfinished) as file, file.open("wb") as copy:
            _copy(self._unfinished, kept, copy)
            _sync_file(copy)
        self._close_shard()
        self._file = os.open(self._unfinished, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _close_shard(self) -> None:
        file, self._file = self._file, -1  # in this order: nothing is closed twice, whenever Ctrl-C comes
        os.close(file)

    def write(self, item: Item, record: Record) -> None:
        stem = self._stem(item.key)
        files = {f"original.{end}" if end in _OURS else end: data for end, data in _files(item).items()}
        text = record.get("text", record.get("choice"))
        if "json" in record:
            text = json.dumps(record["json"], ensure_ascii=False)
        if text is not None:
            files["txt"] = text.encode("utf-8", "backslashreplace")
        files[_RECORD] = json_line(record).encode("utf-8", "backslashreplace")  # last: a sample with it is whole
        write_whole(self._file, b"".join(_member(f"{stem}.{end}" if end else stem, files[end]) for end in files))
        self._stems.add(stem)
        self._count += 1
        if self._count >= self._most or os.fstat(self._file).st_size >= BYTES_PER_FILE:
            self._seal()
        elif time.monotonic() - self._synced > SYNC:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _seal(self) -> None:
        """The shard at hand is whole: give it its name, and begin the next."""
        write_whole(self._file, _END)
        self.sync()
        self._unfinished.rename(next_part(self._path))
        self._close_shard()
        self._file = os.open(self._unfinished, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._stems, self._count = set(), 0

    def finish(self) -> None:
        if self._count:
            self._seal()

    def close(self) -> None:
        if self._file >= 0:  # the lock is ours
            if not os.fstat(self._file).st_size:
                self._unfinished.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
            self._close_shard()
        if self._lock >= 0:
            held, self._lock = self._lock, -1
            os.close(held)

    def _stem(self, key: str) -> str:
        """A key as the name of a sample: no way out of a folder, no dot that webdataset would cut it at."""
        *folders, base = [part for part in key.split("/") if part not in ("", ".", "..")] or ["image"]
        root, end = os.path.splitext(base)
        base = (root if end.lower() in image_suffixes() else base).replace(".", "_")
        stem = name = "/".join([*folders, base]).replace("\0", "_")
        number = 2
        while name in self._stems:
            name, number = f"{stem}~{number}", number + 1
        return name


def _samples(path: Path, cut_off: bool = False) -> Iterator[Sample]:
    """Of each whole sample of a shard of ours: its name, where it begins and ends, and its record.

    Args:
        cut_off: whether the shard may end anywhere.
    """
    start = 0
    try:
        with path.open("rb") as file:
            for member in read_members(file):
                if member.name.rpartition("/")[2].partition(".")[2] == _RECORD:
                    file.seek(member.start)
                    record = json.loads(file.read(member.size))
                    yield member.name.removesuffix(f".{_RECORD}"), start, member.end, record
                    start = member.end
    except (BrokenTar, ValueError, KeyError) as error:
        if cut_off and isinstance(error, BrokenTar):
            return
        raise ValueError(f"{path} holds something other than captions; give another --output.") from None


def _copy(part: Path, samples: list[Sample], file: BinaryIO) -> None:
    with part.open("rb") as source:
        for _, start, end, _ in samples:
            source.seek(start)
            file.write(source.read(end - start))


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _files(item: Item) -> dict[str, bytes]:
    if item.files or not isinstance(item.source, bytes):
        return item.files
    end = "bin"
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(item.source)) as image:
        end = (image.format or end).lower().replace("jpeg", "jpg")
    return {end: item.source}


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)
