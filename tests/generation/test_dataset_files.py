"""Files of data sets: what opens, what can only be opened later, and what never can."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from mlx_fastvlm.generation.dataset import caption_dataset
from tests.support.datasets import KINDS, encoded, job, read_records, write_tar


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def counts(summary):
    return summary.answered, summary.errors


def test_heic_is_answered_once_its_package_is_there(wide, tmp_path, monkeypatch):
    pytest.importorskip("pillow_heif", reason="needs pillow_heif, of the extra heic").register_heif_opener()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "IMG_1.HEIC", "HEIF")
    here = job(tmp_path / "photos", tmp_path / "out.jsonl")

    def unknown(*_, **__):
        raise UnidentifiedImageError("as without the package")

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pillow_heif", None)
        patched.setattr(Image, "open", unknown)
        assert counts(caption_dataset(*wide, here, max_tokens=2)) == (0, 1)
    assert "pip install pillow-heif" in lines(tmp_path / "out.jsonl")[0]["error"]
    assert caption_dataset(*wide, here, max_tokens=2).failed_before == 1
    again = job(tmp_path / "photos", tmp_path / "out.jsonl", retry_errors=True)
    assert counts(caption_dataset(*wide, again, max_tokens=2)) == (1, 0)
    assert [record["key"] for record in lines(tmp_path / "out.jsonl") if "text" in record] == ["IMG_1.HEIC"]


def test_a_mixed_folder_is_answered_or_one_record_each(wide, many, tmp_path, monkeypatch):
    (many / "back").symlink_to(many)
    (many / "self.png").symlink_to("self.png")
    (many / "한국어 e\u0301 \u202e\n.png").write_bytes(encoded(100))
    with open(os.fsencode(many) + b"/\xff\xfe.png", "wb") as file:
        file.write(encoded(101))
    secret = many / "03.png"
    path_open = Path.open

    def refuse(path, *arguments, **options):
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    inner = write_tar(tmp_path / "inner.tar", [("a.png", encoded(102))])
    outer = write_tar(tmp_path / "outer.tar", [("inner.tar", inner.read_bytes()), ("b.png", encoded(103))])
    summary = caption_dataset(*wide, job([many, outer], tmp_path / "out.jsonl"), max_tokens=2)
    records = {record["key"]: record for record in lines(tmp_path / "out.jsonl")}
    assert (counts(summary), summary.duplicates, len(records)) == ((11, 2), 0, 13)
    assert "Permission denied" in records["03.png"]["error"]
    assert "archive in an archive" in next(record["error"] for key, record in records.items() if "inner" in key)
    assert "text" in records["한국어 e\u0301 \u202e\n.png"]
    assert "text" in records["\\udcff\\udcfe.png"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["another", "cut off"])
def test_a_shard_that_is_replaced_meanwhile(wide, tmp_path, kind, how):
    """By one with the same keys in another order and one more; or it is cut off where it lies, and later mended."""
    files = [(f"{i:02}.png", encoded(i)) for i in range(40)]
    shard = write_tar(tmp_path / "s.tar", files)
    caption_dataset(*wide, job(shard, tmp_path / f"whole.{kind}"), max_tokens=2, image_size=64)
    texts = {record["key"]: record["text"] for record in read_records(tmp_path, kind, "whole")}

    def replace(summary):
        if summary.answered == 5:
            if how == "another":
                new = [*files, ("40.png", encoded(0))]
                write_tar(tmp_path / "new", new[::-1]).replace(shard)
            else:
                os.truncate(shard, shard.stat().st_size // 2)

    options = {"batch_size": 2, "threads": 1, "records_per_file": 7}
    first = caption_dataset(
        *wide, job(shard, tmp_path / f"out.{kind}", **options), replace, max_tokens=2, image_size=64
    )
    assert first.answered >= 5
    assert (first.answered == 40) == (first.errors == 0) == (how == "another")
    if how == "cut off":
        write_tar(shard, files)
    options["retry_errors"] = True
    last = caption_dataset(*wide, job(shard, tmp_path / f"out.{kind}", **options), max_tokens=2, image_size=64)
    assert last.errors == 0
    found = read_records(tmp_path, kind)
    assert len(found) == (41 if how == "another" else 40)
    assert {record["key"]: record.get("text") for record in found} == (
        {**texts, "s.tar/40": texts["s.tar/00"]} if how == "another" else texts
    )
