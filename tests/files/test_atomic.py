"""Modes, links, other people's files, and targets that are none: what writing whole must respect."""

import os
import signal
import stat
import sys

import pytest

from mlx_fastvlm.files import atomic_file, atomic_folder, check_target
from tests.support.paths import left
from tests.support.processes import run


@pytest.fixture
def umask():
    """Sets the umask for a test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write_file(target, text="new"):
    with atomic_file(target) as file:
        file.write_text(text)


def write_folder(target, **options):
    with atomic_folder(target, **options) as folder:
        (folder / "new.txt").write_text("new")


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0, 0o666, 0o777)])
def test_new_things_have_the_mode_that_the_umask_leaves(tmp_path, umask, mask, file, folder):
    umask(mask)
    write_file(tmp_path / "a.txt")
    write_folder(tmp_path / "model")
    assert mode(tmp_path / "a.txt") == file
    assert (mode(tmp_path / "model"), mode(tmp_path / "model" / "new.txt")) == (folder, file)


def test_what_is_replaced_gives_its_mode(tmp_path, umask):
    umask(0o022)
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o600)
    (tmp_path / "model").mkdir(mode=0o700)
    with atomic_file(tmp_path / "a.txt") as file:
        assert mode(file) == 0o600  # and never more than in the end
        file.write_text("new")
    write_folder(tmp_path / "model", force=True)
    assert (mode(tmp_path / "a.txt"), mode(tmp_path / "model")) == (0o600, 0o700)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("old")
    for name, to in (("link", "there/a.txt"), ("dangling", "there/b.txt")):
        (tmp_path / name).symlink_to(to)
        write_file(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / to).read_text() == "new"
    assert left(tmp_path / "there") == ["a.txt", "b.txt"]


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "model").symlink_to("large disk")
    write_folder(tmp_path / "model")
    assert (tmp_path / "model").is_symlink()
    assert left(tmp_path / "large disk") == ["new.txt"]


def test_a_lock_that_is_a_link_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".model.lock").symlink_to("precious")
    with pytest.raises(OSError, match="is a link"):
        write_folder(tmp_path / "model")
    assert (tmp_path / "precious").read_text() == "precious"
    assert left(tmp_path) == [".model.lock", "precious"]


def test_a_lock_that_is_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / ".model.lock").write_text("my notes")
    with pytest.raises(OSError, match="not this package's"):
        write_folder(tmp_path / "model")
    (tmp_path / ".model.lock").unlink()
    os.mkfifo(tmp_path / ".model.lock")
    with pytest.raises(OSError, match="not this package's"):
        write_folder(tmp_path / "model")
    assert left(tmp_path) == [".model.lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mlx_fastvlm.files import atomic_folder
with atomic_folder(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_what_this_package_left_is_removed(tmp_path):
    """A user's folder of a similar name stays; so does a killed conversion's under a name that only begins alike."""
    users = [".model.unfinished-notes", ".model.unfinished-0123abcd", ".model.replaced-0123abcd"]
    for name in users:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("precious")
    for name in ("model", "model.unfinished-x"):
        assert run([sys.executable, "-c", KILLED, tmp_path / name]).returncode == -signal.SIGKILL
    others = {name for name in left(tmp_path) if name.startswith(".model.unfinished-x")}
    assert len(others) == 2  # its folder and its lock
    write_folder(tmp_path / "model")
    assert left(tmp_path) == sorted({*users, *others, "model"})


def test_a_folder_that_is_being_written_under_a_similar_name_stays(tmp_path):
    with atomic_folder(tmp_path / "model.unfinished-x") as folder:
        write_folder(tmp_path / "model")
        (folder / "a.txt").write_text("mine")
    assert left(tmp_path / "model.unfinished-x") == ["a.txt"]


def test_a_lock_file_can_not_name_others_folders(tmp_path):
    """A stranger's lock file that asks for other folders' removal is not obeyed.

    Nothing outside ``tmp_path`` is ever named here: code that obeyed it would really remove what it names.
    """
    (tmp_path / "place").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "place" / "precious").mkdir()
    (tmp_path / "place" / ".model.lock").write_text(".model.unfinished-0123abcd\n../beside\nprecious\n")
    write_folder(tmp_path / "place" / "model")
    assert (left(tmp_path / "place"), left(tmp_path)) == (["model", "precious"], ["beside", "place"])


@pytest.mark.parametrize("name", [".", "", ".."])
@pytest.mark.parametrize("force", [True, False])
def test_the_folder_one_is_in_is_no_target(tmp_path, monkeypatch, name, force):
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match="the folder you are in"):
        write_folder(type(tmp_path)(name), force=force)
    assert (left(tmp_path), left(place)) == (["here"], [])


def test_a_name_that_is_not_utf8(tmp_path):
    with pytest.raises(ValueError, match="is not valid UTF-8"):
        check_target(tmp_path / os.fsdecode(b"\xff"))


def test_a_target_that_can_not_be_moved_away_leaves_nothing(tmp_path, monkeypatch):
    """As where it is a mount point."""
    (tmp_path / "model").mkdir()

    def busy(path, to):
        raise OSError("Device or resource busy")

    monkeypatch.setattr(type(tmp_path), "rename", busy)
    with pytest.raises(OSError, match="busy"):
        write_folder(tmp_path / "model", force=True)
    assert left(tmp_path) == ["model"]
