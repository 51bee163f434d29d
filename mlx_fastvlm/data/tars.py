"""Samples of a tar shard as webdataset names them: ``KEY.jpg``, ``KEY.json`` and so on, one after the other.

Shards may be a stranger's. They are read member by member, nothing is unpacked to the disk, and no size is believed
before it fits the file.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import one_line
from .items import SAMPLE_LIMIT, Item, image_suffixes

BLOCK = 512
NAME_LIMIT = 2**16  # bytes of a header that holds a long name
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)


class BrokenTar(ValueError):
    """A shard that can't be read on."""


class EndlessTar(BrokenTar):
    """A shard whose members are all whole, but there may have been more."""


@dataclass
class Member:
    """A file in a tar.

    Attributes:
        kind: tarfile's letter for it; ``REGTYPE`` is a file.
        start: where its bytes begin.
    """

    name: str
    kind: bytes
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + -(-self.size // BLOCK) * BLOCK


def read_members(file: BinaryIO, finished: bool = False) -> Iterator[Member]:
    """The members of an open tar in their order; ``BrokenTar`` where it can't be read on.

    Args:
        finished: whether the empty block has to be there that ends a tar.
    """
    whole = os.fstat(file.fileno()).st_size
    place, name, size = 0, None, None
    while place < whole:
        file.seek(place)
        block = file.read(BLOCK)
        if len(block) == BLOCK and not block.strip(b"\0"):
            return
        if not block:  # it has become shorter
            break
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise BrokenTar(f"is broken at byte {place} ({one_line(str(error))})") from None
        given = header.size if size is None else size
        given = 0 if header.type in _WITHOUT_DATA else given
        member = Member(header.name if name is None else name, header.type, place + BLOCK, given)
        if given < 0 or member.start + given > whole:
            raise BrokenTar(f"is cut off, or lies about sizes, at byte {place}")
        place = member.end
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            name, size = _extended(file, member, name, size)
        elif header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            yield member
            name = size = None
    if finished:
        raise EndlessTar("has no end: it is cut off, or whatever made it did not finish it")


def _extended(file: BinaryIO, member: Member, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """What a header says of the next one: its name, its size."""
    if member.size > NAME_LIMIT:
        raise BrokenTar(f"has a name of {member.size} bytes")
    data = file.read(member.size)
    if member.kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape"), size
    while data:
        length, blank, _ = data.partition(b" ")
        if not blank or not length.isdigit() or not len(length) + 2 < int(length[:6]) <= len(data):
            raise BrokenTar("has a broken extended header")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        data = data[int(length) :]
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise BrokenTar("has a sparse file")
    return name, size


def tar_items(path: Path, name: str) -> Iterator[Item]:
    """A shard's samples; ``name`` is what their keys begin with. What is wrong with one is its item's error."""
    try:
        with path.open("rb") as file:
            yield from _items(file, name)
    except BrokenTar as error:
        yield Item(name, error=f"{one_line(name)} {error}; get the shard again.")
    except OSError as error:
        yield Item(name, error=f"{one_line(name)} can't be read ({error.strerror or error}); check the shard.")


def _items(file: BinaryIO, name: str) -> Iterator[Item]:
    sample: list[Member] = []
    end: EndlessTar | None = None
    try:
        for member in read_members(file, finished=True):
            if member.kind == tarfile.DIRTYPE:
                continue
            if sample and _key(member.name) != _key(sample[0].name):
                yield _item(file, name, sample)
                sample = []
            sample.append(member)
            if len(sample) > 100:
                raise BrokenTar(f"has more than 100 files of one name, {one_line(member.name)}")
    except EndlessTar as error:
        end = error
    if sample:
        yield _item(file, name, sample)
    if end is not None:
        raise end


def _key(name: str) -> str:
    """What webdataset calls a sample: the path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _item(file: BinaryIO, shard: str, sample: list[Member]) -> Item:
    stem = _key(sample[0].name)
    key = f"{shard}/{stem}"
    fault = _fault(sample)
    if fault:
        return Item(key, error=f"{one_line(sample[0].name)} {fault}")
    ends = [member.name.rpartition("/")[2].partition(".")[2] for member in sample]
    known = image_suffixes()
    image = next((end for end in ends if f".{end.rpartition('.')[2].lower()}" in known), None)
    if image is None:
        return Item(key, error=f"{one_line(stem)} has no image among its files; leave it, or add one.")

    def load() -> tuple[bytes, dict[str, bytes]]:
        files = {}
        for end, member in zip(ends, sample):
            file.seek(member.start)
            files[end] = file.read(member.size)
            if len(files[end]) < member.size:
                raise OSError("it was cut off meanwhile")
        return files[image], files

    return Item(key, loader=load)


def _fault(sample: list[Member]) -> str | None:
    """Why a sample is refused."""
    for member in sample:
        parts = member.name.split("/")
        if member.name.startswith("/") or ".." in parts or "\0" in member.name:
            return "leads out of the archive; name it otherwise."
        if member.kind not in _PLAIN:
            return "is a link or no plain file; put the file itself into the archive."
        if member.name.lower().endswith((".tar", ".tgz", ".tar.gz")):
            return "is an archive in an archive; unpack it first."
    if sum(member.size for member in sample) > SAMPLE_LIMIT:
        return f"has more than {SAMPLE_LIMIT >> 20} MB; take it out of the archive."
    return None
