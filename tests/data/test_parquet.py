"""Rows of parquet files: every way in which images are in them, and what is wrong with some."""

import random

import pytest

from mlx_fastvlm.data.parquet import parquet_items
from tests.support.datasets import encoded

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra test")
pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra test")

IMAGE = encoded(3)


def read(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return list(parquet_items(path, path.name))


def test_images_as_bytes(tmp_path):
    first, second = read(tmp_path / "p.parquet", {"jpg": [IMAGE, IMAGE], "other": [1, 2]})
    assert (first.key, first.source, first.error) == ("p.parquet/0", IMAGE, None)
    assert second.key == "p.parquet/1"


def test_images_as_hugging_face_has_them_with_keys_and_prompts(tmp_path):
    images = [{"bytes": IMAGE, "path": "x.png"}, {"bytes": None, "path": "a.png"}]
    first, second = read(tmp_path / "p.parquet", {"image": images, "key": [7, 9], "prompt": ["What?", None]})
    assert (first.key, first.source, first.prompt) == ("p.parquet/7", IMAGE, "What?")
    assert (second.key, second.source, second.prompt) == ("p.parquet/9", tmp_path / "a.png", None)


def test_paths_stay_in_the_folder_and_urls_outside_the_network(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to("/etc/passwd")
    paths = ["a.png", "../a.png", "/etc/passwd", "link.png", "a\0.png", "", "http://127.0.0.1/a.png"]
    items = read(tmp_path / "in" / "p.parquet", {"path": paths})
    assert [item.error is None for item in items] == [True, False, False, False, False, False, True]
    assert "leads out" in items[1].error
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        items[-1].opened()


def test_rows_and_files_that_are_wrong(tmp_path):
    (item,) = read(tmp_path / "p.parquet", {"number": [1]})
    assert "has no image column; it has number" in item.error
    (item,) = read(tmp_path / "p.parquet", {"image": [None], "prompt": ["a"]})
    assert "no image in its column" in item.error
    (item,) = read(tmp_path / "p.parquet", {"image": [IMAGE], "prompt": [5]})
    assert "prompt is not text" in item.error
    (tmp_path / "p.parquet").write_bytes(b"PAR1 precious PAR1")
    (item,) = parquet_items(tmp_path / "p.parquet", "p.parquet")
    assert "p.parquet can't be read past row 0" in item.error
    assert "\n" not in item.error


def test_a_large_image_many_times_is_not_held_many_times(tmp_path, monkeypatch):
    """A dictionary makes gigabytes of a few bytes: of 1,000 rows of a megabyte, few are in memory at a time."""
    path = tmp_path / "p.parquet"
    big = random.Random(0).randbytes(2**20)
    read_now = pyarrow.total_allocated_bytes
    pyarrow.parquet.write_table(
        pyarrow.table({"image": pyarrow.array([big]).dictionary_encode().take(pyarrow.array([0] * 1000))}), path
    )
    assert path.stat().st_size < 2**22
    before, most = read_now(), 0
    for item in parquet_items(path, "p"):
        most = max(most, read_now() - before)
        assert item.source == big
    assert most < 200 * 2**20
