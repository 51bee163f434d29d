"""Tar shards as webdataset writes them, and as a stranger would."""

import io
import os
import tarfile

import pytest

from mlx_fastvlm.data import tars
from mlx_fastvlm.data.tars import tar_items
from tests.support.datasets import encoded, write_tar

IMAGE = encoded(3)


def read(path):
    items = []
    for item in tar_items(path, path.name):
        item.load()
        items.append(item)
    return items


def special(path, **fields):
    """A tar with an image, a member with these fields, and another image."""
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", None, "z.png"):
            member = tarfile.TarInfo(name or fields.pop("name", "bad.png"))
            data = IMAGE if name else fields.pop("data", b"")
            member.size = len(data)
            for field, value in ({} if name else fields).items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_files_of_one_key_are_one_sample(tmp_path):
    files = [("a/1.png", IMAGE), ("a/1.json", b"{}"), ("a/1.seg.txt", b"x"), ("2.JPG", encoded(4, "JPEG"))]
    first, second = read(write_tar(tmp_path / "s.tar", files))
    assert first.key == "s.tar/a/1"
    assert first.files == {"png": IMAGE, "json": b"{}", "seg.txt": b"x"}
    assert first.source == IMAGE
    assert second.key == "s.tar/2"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["é 東京.png", "x" * 90 + "/" + "y" * 90 + ".png", "a b=c\n.png"])
def test_names_of_every_form(tmp_path, format, name):
    with tarfile.open(tmp_path / "s.tar", "w", format=format) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(IMAGE)
        archive.addfile(member, io.BytesIO(IMAGE))
    (item,) = read(tmp_path / "s.tar")
    assert item.key == "s.tar/" + name.removesuffix(".png")
    assert item.source == IMAGE


REFUSED = {
    "a path out of it": ({"name": "../bad.png", "data": IMAGE}, "leads out of the archive"),
    "an absolute path": ({"name": "/etc/bad.png", "data": IMAGE}, "leads out of the archive"),
    "a symbolic link": ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link"),
    "a hard link": ({"type": tarfile.LNKTYPE, "linkname": "a.png"}, "is a link"),
    "a device": ({"type": tarfile.CHRTYPE}, "is a link or no plain file"),
    "a pipe": ({"type": tarfile.FIFOTYPE}, "is a link or no plain file"),
    "a tar": ({"name": "bad.tar", "data": IMAGE}, "archive in an archive"),
    "no image": ({"name": "bad.json", "data": b"{}"}, "has no image"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_one_error_between_the_others(tmp_path, what):
    fields, words = REFUSED[what]
    first, bad, last = read(special(tmp_path / "s.tar", **fields))
    assert (first.error, last.error) == (None, None)
    assert words in bad.error
    assert bad.source is None
    assert "\n" not in bad.error


def test_samples_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "SAMPLE_LIMIT", 1000)
    _, bad, last = read(special(tmp_path / "s.tar", data=bytes(1001)))
    assert "more than" in bad.error
    assert last.source == IMAGE


def test_more_files_of_one_name_than_any_sample_has(tmp_path):
    path = write_tar(tmp_path / "s.tar", [(f"a.{i}", b"") for i in range(102)])
    (item,) = read(path)
    assert "more than 100 files" in item.error


def changed(path, offset, data):
    """Bytes of the first header replaced, with a right checksum."""
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(data)] = data
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\xff" * 8, b"\xff" * 12], ids=["huge", "base-256", "negative"]
)
def test_sizes_that_lie(tmp_path, size):
    (item,) = read(changed(write_tar(tmp_path / "s.tar", [("a.png", IMAGE)]), 124, size))
    assert item.key == "s.tar"
    assert "s.tar is cut off, or lies about sizes" in item.error


def test_extended_headers_that_lie(tmp_path):
    def shard(records):
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, len(records)
        data = header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
        (tmp_path / "s.tar").write_bytes(data + write_tar(tmp_path / "t.tar", [("a.png", IMAGE)]).read_bytes())
        return read(tmp_path / "s.tar")

    assert "lies about sizes" in shard(b"21 size=999999999999\n")[0].error
    for records in (b"99 path=a\n", b"0 path=a\n", b"x", b"6 a=b\n6", b"9999999999 path=a\n"):
        assert "broken extended header" in shard(records)[0].error
    assert "sparse" in shard(b"22 GNU.sparse.major=1\n")[0].error
    assert shard(b"14 path=b.png\n")[0].key == "s.tar/b"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**6
    (tmp_path / "s.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10**6 + 512))
    assert "has a name of 1000000 bytes" in read(tmp_path / "s.tar")[0].error


def test_a_chain_of_long_names_ends(tmp_path):
    """tarfile follows it by recursion."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    link = header.tobuf(tarfile.GNU_FORMAT) + b"b\0" + bytes(510)
    (tmp_path / "s.tar").write_bytes(link * 5000 + write_tar(tmp_path / "t.tar", [("a.png", IMAGE)]).read_bytes())
    assert len(read(tmp_path / "s.tar")) == 1


@pytest.mark.parametrize(
    ("keep", "whole", "errors"), [(1, 0, 1), (520, 0, 1), (1100, 0, 1), (2048, 2, 1), (2100, 1, 1), (3072, 3, 1)]
)
def test_a_shard_that_is_cut_off(tmp_path, keep, whole, errors):
    """The sample before the break is left out too, as it may have lost files, unless all that is there is whole."""
    path = write_tar(tmp_path / "s.tar", [("a.png", IMAGE), ("b.png", IMAGE), ("c.png", IMAGE)])
    os.truncate(path, keep)
    items = read(path)
    assert [item.key for item in items] == ["s.tar/a", "s.tar/b", "s.tar/c"][:whole] + ["s.tar"] * errors
    assert [item.error is None for item in items] == [True] * whole + [False] * errors


def test_no_tar_at_all(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"precious" * 100)
    (item,) = read(tmp_path / "s.tar")
    assert item.key == "s.tar"
    assert "is broken at byte 0" in item.error


def test_a_shard_that_breaks_while_it_is_read(tmp_path):
    large = bytes(10**6)  # more than a file object reads ahead
    path = write_tar(tmp_path / "s.tar", [(f"{i}.png", large) for i in range(3)])
    items = tar_items(path, path.name)
    first, second = next(items), next(items)
    first.load()
    os.truncate(path, 1_500_000)
    second.load()
    assert (first.source, first.error) == (large, None)
    assert (second.source, second.files) == (None, {})
    assert second.error == "s.tar/1 can't be read (it was cut off meanwhile); check the archive."
    third = next(items)
    third.load()
    assert "cut off meanwhile" in third.error
    (last,) = items
    assert last.key == "s.tar"
    assert "has no end" in last.error
