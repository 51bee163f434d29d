"""A folder of a checkpoint is the old one or the new one, and never half of each."""

from pathlib import Path

import pytest

from mlx_fastvlm.files import atomic_folder


def test_what_was_there_comes_back_where_the_new_one_can_not(tmp_path, monkeypatch):
    """The rename of the finished folder fails, after the old one has made room."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    rename = Path.rename

    def fail_for_the_new_one(path, to):
        if ".unfinished-" in path.name:
            raise OSError("the disk went away")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="went away"), atomic_folder(target, force=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "mine.txt").read_text() == "precious"


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path):
    target = tmp_path / "model"

    def write():
        with atomic_folder(target) as folder:
            (folder / "new.txt").write_text("new")
            target.mkdir()
            (target / "other.txt").write_text("another conversion's")

    with pytest.raises(FileExistsError, match="--force"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["other.txt"]
