"""Where records go: each sink writes one whole or not at all, knows those that are there, and has one writer."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import UsageError, short
from ..files import json_line
from .archives import TarSink
from .lines import Keep, LineSink, Record
from .parts import clean_up, named
from .settings import Settings, check_same, plain, read_settings, settings_file, write_settings
from .shards import Shard
from .tables import ParquetSink
from .texts import TextSink

if TYPE_CHECKING:
    from .items import Item

KINDS = ".jsonl, .parquet or .tar, .txt for texts beside the images of a folder, or - for standard output"


class Sink(Protocol):
    """Attributes:
    keeps_images: whether it stores the images' files too.
    """

    keeps_images: bool

    def records(self) -> Iterator[Record]:
        """Those that are there."""

    def keep(self, wanted: Keep) -> None:
        """Drop the other records."""

    def write(self, item: Item, record: Record) -> None:
        """Store a record, and with it what else the sink keeps of its item."""

    def finish(self) -> None:
        """All records of this run are written."""

    def close(self) -> None:
        """Let go of the files; what was written stays, also where the run did not finish."""


class _StandardOutput:
    """JSON lines for another program: nothing is remembered."""

    keeps_images = False

    def records(self) -> Iterator[Record]:
        return iter(())

    def keep(self, wanted: Keep) -> None:
        pass

    def write(self, item: Item, record: Record) -> None:
        print(json_line(record).encode("utf-8", "backslashreplace").decode(), flush=True)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Destination:
    """Where records go, and what becomes of those that are there.

    Attributes:
        output: a file's name; its end says what is written.
        shard: this process's part, which goes into a file of its own.
        append_as: a name for this run's records, beside those of others with other settings.
        overwrite: drop this output's records first; with ``append_as``, those of that name.
        retry_errors: drop the records of errors first.
        records_per_file: of parquet and tar.
    """

    output: str
    shard: Shard = field(default_factory=Shard)
    append_as: str | None = None
    overwrite: bool = False
    retry_errors: bool = False
    records_per_file: int = 10_000

    def __post_init__(self) -> None:
        if self.append_as is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.append_as):
            raise UsageError(f"append_as may have only letters, digits, - and _, got {short(self.append_as)}.")
        if self.records_per_file < 1:
            raise UsageError(f"records_per_file must be at least 1, got {self.records_per_file}.")
        kind = self.output if self.output in ("-", ".txt") else Path(self.output).suffix.lower()
        if kind not in ("-", ".txt", ".jsonl", ".parquet", ".tar") or (kind == ".txt" and self.output != ".txt"):
            raise UsageError(f"The output must end with {KINDS}; got {short(self.output)}.")
        if kind == "-" and (self.overwrite or self.retry_errors):
            raise UsageError("Standard output holds nothing to overwrite or to retry; give a file.")

    def path(self, sources: Iterable[str | Path]) -> Path:
        """The file that is written, or that others are named after."""
        if self.output == ".txt":
            folders = [Path(source).expanduser() for source in sources]
            if len(folders) != 1 or not folders[0].is_dir():
                raise UsageError("Texts beside images need one folder as the source; give it, or another output.")
            return Path(self.shard.part(str(folders[0] / ".captions.jsonl")))
        return Path(self.shard.part(self.output))


class Records:
    """An open output.

    Attributes:
        done: key -> prompt fingerprint of each record that is there.
        failed: how many of those are errors.
        sink: where to write.
    """

    def __init__(self, sink: Sink, name: str | None) -> None:
        self.sink, self._name = sink, name
        self.done: dict[str, str] = {}
        self.failed = 0

    def look(self) -> None:
        """See which records are there."""
        self.done, self.failed = {}, 0
        for record in self.mine():
            self.done[record["key"]] = sys.intern(str(record.get("prompt")))
            self.failed += "error" in record

    def mine(self) -> Iterator[Record]:
        """The records under this name that are there."""
        return (record for record in self.sink.records() if record.get("as") == self._name)

    def write(self, item: Item, record: Record) -> None:
        self.sink.write(item, record if self._name is None else {"key": record["key"], "as": self._name, **record})


@contextlib.contextmanager
def open_records(destination: Destination, sources: Iterable[str | Path], settings: Settings) -> Iterator[Records]:
    """Open an output to go on where it ended.

    Args:
        settings: what makes the answers, ``model`` among it; an output with others is refused.

    Raises:
        UsageError: its records were made with other settings.
        ValueError: it holds other things.
        OSError: another process is writing to it, or it can't be written.
    """
    path, name = destination.path(sources), destination.append_as
    sink = _open(destination, path)
    records = Records(sink, name)
    try:
        if destination.output != "-":
            clean_up(settings_file(path))
            _prepare(records, path, destination, plain(settings))
        yield records
        sink.finish()
    finally:
        sink.close()


def _open(destination: Destination, path: Path) -> Sink:
    name, kind = destination.append_as, path.suffix.lower()
    if destination.output == "-":
        # What else prints, as a library may, must not come between the lines.
        return _StandardOutput()
    if destination.output == ".txt":
        return TextSink(path.parent, named(path, name), name)
    if kind == ".parquet":
        return ParquetSink(named(path, name), destination.records_per_file)
    if kind == ".tar":
        return TarSink(named(path, name), destination.records_per_file)
    return LineSink(path)


def _prepare(records: Records, path: Path, destination: Destination, settings: Settings) -> None:
    name = destination.append_as
    if destination.overwrite:
        records.sink.keep(lambda record: record.get("as") != name)
    before = read_settings(path, name)
    records.look()
    if records.done:
        if before is None:  # somebody has moved the output without its settings
            before = {**settings, "model": next(records.mine()).get("model")}
        check_same(path, before, settings)
    if destination.retry_errors and records.failed:
        records.sink.keep(lambda record: record.get("as") != name or "error" not in record)
        records.look()
    if before != settings:
        write_settings(path, name, settings)
