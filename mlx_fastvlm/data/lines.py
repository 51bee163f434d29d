"""A file of JSON lines, one for each record; a line is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import atomic_file, json_line
from .items import SAMPLE_LIMIT, Item
from .lock import lock
from .parts import clean_up

Record = dict[str, Any]
Keep = Callable[[Record], bool]

SYNC = 5.0  # seconds after which what was written is sent to the disk itself
_BEGINNING = b'{"key": "'  # of every line


class LineSink:
    """Appends records to a file of lines, which no other process writes meanwhile.

    Raises:
        ValueError: the file holds other things.
        OSError: another process is writing to it.
    """

    keeps_images = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._synced = time.monotonic()
        try:
            lock(self._file, path)
            clean_up(path)
            self._repair()
        except BaseException:
            self.close()
            raise

    def _repair(self) -> None:
        """Remove a last line that was cut off."""
        size = os.fstat(self._file).st_size
        rest = b""
        while size - len(rest) > 0 and b"\n" not in rest:
            if len(rest) > SAMPLE_LIMIT:
                raise self._foreign()
            rest = os.pread(self._file, min(2**16, size - len(rest)), max(0, size - len(rest) - 2**16)) + rest
        rest = rest[rest.rfind(b"\n") + 1 :]
        if not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
            raise self._foreign()
        for _ in self.records():  # nothing is cut off what is no list of records
            pass
        if rest:
            os.ftruncate(self._file, size - len(rest))  # what writes nothing can't fail for want of room

    def _foreign(self) -> ValueError:
        return ValueError(f"{self._path} holds something other than captions; give another --output.")

    def records(self) -> Iterator[Record]:
        """Those that are there, in order."""
        with self._path.open("rb") as file:
            while line := file.readline(SAMPLE_LIMIT):
                if not line.endswith(b"\n"):
                    return
                if line.isspace():
                    continue
                try:
                    record = json.loads(line)
                    if not isinstance(record["key"], str):
                        raise ValueError
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise self._foreign() from None
                yield record

    def keep(self, wanted: Keep) -> None:
        """Drop the other records, all of them at once."""
        with atomic_file(self._path) as unfinished:
            new = os.open(unfinished, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                lock(new, unfinished)
                for record in self.records():
                    if wanted(record):
                        write_whole(new, _line(record))
                os.fsync(new)
            except BaseException:
                os.close(new)
                raise
        old, self._file = self._file, new
        os.close(old)

    def write(self, item: Item, record: Record) -> None:
        write_whole(self._file, _line(record))
        if time.monotonic() - self._synced > SYNC:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def finish(self) -> None:
        """All records of this run are written."""
        self.sync()

    def remove_if_empty(self) -> None:
        """Leave no file where there is no record."""
        if self._file >= 0 and not os.fstat(self._file).st_size:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def _line(record: Record) -> bytes:
    return (json_line(record) + "\n").encode("utf-8", "backslashreplace")


def write_whole(descriptor: int, data: bytes) -> None:
    """All of it, or nothing."""
    size = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
