"""Finding checkpoints: in folders, and on the hub."""

import io

import pytest
from huggingface_hub import errors

from mlx_fastvlm import load
from mlx_fastvlm.hub import _late_progress, find_checkpoint


def test_a_folder_needs_no_network(checkpoint, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    load(checkpoint("apple"))


def test_only_needed_files_are_downloaded(monkeypatch, checkpoint):
    asked = {}

    def snapshot_download(repo, revision, allow_patterns, **_):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(checkpoint("apple"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    load("apple/FastVLM-0.5B", revision="main")
    assert asked["repo"] == "apple/FastVLM-0.5B"
    assert asked["revision"] == "main"
    assert "*.safetensors" in asked["patterns"]
    assert not any(pattern.endswith((".bin", ".py")) for pattern in asked["patterns"])


def test_a_failed_download_is_an_oserror(monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(OSError, match="could not be downloaded"):
        load("apple/FastVLM-0.5B")


@pytest.mark.parametrize(
    ("fault", "kind", "advice"),
    [
        ("GatedRepoError", OSError, "accept its terms on the hub"),
        ("RepositoryNotFoundError", FileNotFoundError, "no such model; check the name"),
        ("RevisionNotFoundError", FileNotFoundError, "has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, fault, kind, advice):
    error = getattr(errors, fault)

    def refuse(*_, **__):
        raise error.__new__(error)  # what it is made of depends on the hub package's version

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(kind, match=advice):
        load("someone/model", revision="v9")


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "a/b/c", "/no/such/folder"])
def test_no_such_checkpoint(name):
    with pytest.raises(FileNotFoundError, match="hub id"):
        find_checkpoint(name)


def test_a_file_and_an_empty_folder_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        find_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file"):
        find_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("seconds", [0, 2])
def test_files_that_are_there_draw_no_progress_bar(monkeypatch, seconds):
    """The hub's bar appears once there was something to wait for; clocks are set here, so nothing waits."""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    shown = io.StringIO()
    bar = _late_progress()(total=2, desc="Fetching 2 files", file=shown, disable=False)
    bar.start_t -= seconds
    bar.last_print_t -= seconds
    bar.update(2)
    bar.close()
    assert ("Fetching" in shown.getvalue()) == bool(seconds)
