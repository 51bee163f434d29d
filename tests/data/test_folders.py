"""Folders: every image once, whatever lies beside it; and patterns."""

import os

import pytest

from mlx_fastvlm.data.folders import expand, find_images, folder_items
from tests.support.datasets import encoded


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/é 東京.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(1))
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def keys(folder):
    return [item.key for item in folder_items(folder)]


def test_images_by_name_with_hidden_ones_left_out(folder):
    assert keys(folder) == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/é 東京.png"]
    assert [file.name for file in find_images(folder)] == ["a.JPG", "b.png", "c.webp", "é 東京.png"]


def test_links_in_a_circle_end(folder):
    (folder / "sub" / "back").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "other.png").symlink_to("b.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    assert keys(folder) == ["a.JPG", "b.png", "other.png", "sub/c.webp", "sub/deep/é 東京.png"]


def test_names_that_are_not_utf_8_have_keys_that_are(folder):
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(encoded(1))
    assert "\\udcff.png" in keys(folder)
    assert len(set(keys(folder))) == 5


def test_a_folder_that_can_not_be_read_is_one_error(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    items = folder_items(folder)
    assert [item.key for item in items if item.error] == ["sub/deep"]
    assert len(items) == 4


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_images(tmp_path / "nowhere")


def test_patterns_name_files_below_their_fixed_part(folder):
    assert [name for name, _ in expand(f"{folder}/*.png")] == ["b.png"]
    assert [name for name, _ in expand(f"{folder}/**/*.webp")] == ["sub/c.webp"]
    assert all(path.is_file() for _, path in expand(f"{folder}/**"))
    with pytest.raises(FileNotFoundError, match="names no file"):
        expand(f"{folder}/*.bmp")


def test_patterns_relative_to_where_one_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [name for name, _ in expand("*.png")] == ["b.png"]
    assert [(name, str(path)) for name, path in expand("sub/*.webp")] == [("c.webp", "sub/c.webp")]


def test_names_in_any_script(folder):
    names = ["한국어.png", "العربية.png", "हिन्दी.png", "e\u0301.png", "\u202egnp.png", "a\nb.png", "'\"\\.png"]
    for name in names:
        (folder / name).write_bytes(encoded(1))
    assert set(names) <= set(keys(folder))
    assert len(keys(folder)) == 4 + len(names)
