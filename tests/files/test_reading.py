"""Files of a stranger's checkpoint: too large, endless, hidden, of odd names; and a closed standard input."""

import os
import shutil
import sys

import mlx.core as mx
import pytest

from mlx_fastvlm import load
from mlx_fastvlm.files import read_safetensors, read_text, write_tensors
from mlx_fastvlm.files.text import SIZE_LIMIT
from tests.support.images import IMAGE
from tests.support.processes import run


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the small checkpoint to spoil."""
    return shutil.copytree(checkpoint("apple"), tmp_path / "model")


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "merges.txt", "vocab.json"])
def test_a_huge_text_file_is_refused_before_it_is_read(folder, name):
    with (folder / name).open("ab") as file:
        file.truncate(SIZE_LIMIT + 1)  # takes no disk
    with pytest.raises(ValueError, match=f"{name} is larger than 64 MB"):
        load(folder)


def test_a_text_that_is_not_utf8(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_text(folder / "chat_template.jinja")
    with pytest.raises(ValueError, match="is not UTF-8"):
        load(folder)


def test_a_pipe_for_weights_does_not_hang(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(ValueError, match="is not a regular file"):
        load(folder)


def test_hidden_files_are_no_shards(folder):
    """macOS puts one beside each file on a foreign disk."""
    (folder / "._model.safetensors").write_bytes(b"\x00\x05\x16\x07")
    load(folder)


def test_names_that_are_not_utf8(folder, tmp_path):
    for read, name in ((load, b"model-\xff"), (read_safetensors, b"model/\xff.safetensors")):
        with pytest.raises(ValueError, match="is not valid UTF-8"):
            read(tmp_path / os.fsdecode(name))


def test_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    write_tensors(tmp_path, {"a": mx.zeros(1), "b": mx.zeros(1)}, made_for="mlx")
    read_safetensors(tmp_path / "model.safetensors")
    monkeypatch.setattr("mlx_fastvlm.files.tensors.MOST_TENSORS", 1)
    with pytest.raises(ValueError, match="holds 2 tensors"):
        read_safetensors(tmp_path / "model.safetensors")


def test_a_closed_standard_input(checkpoint, tmp_path):
    """MLX takes descriptor 0, which is then the next file's, for a failure; the library leaves it closed."""
    IMAGE.save(tmp_path / "image.png")
    words = [sys.executable, "-m", "mlx_fastvlm.generate", "--model", checkpoint("apple"), "--max-tokens", "2"]
    words += ["--image", tmp_path / "image.png", "--prompt", "Hi"]
    done = run(["sh", "-c", '"$@" <&-', "sh", *words])
    assert done.returncode == 0, done.stderr
    code = (
        "import os, sys, mlx_fastvlm; mlx_fastvlm.load(sys.argv[1])\ntry: os.fstat(0)\nexcept OSError: print('closed')"
    )
    done = run(["sh", "-c", '"$@" <&-', "sh", sys.executable, "-c", code, checkpoint("apple")])
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
