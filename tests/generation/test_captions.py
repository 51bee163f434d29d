"""A folder of images: a line for each, and nothing asked twice."""

import fcntl
import json
import re

import pytest
from PIL import Image

from mlx_fastvlm import Engine, generate
from mlx_fastvlm.generation.captions import caption_folder
from mlx_fastvlm.generation.text import TextStream
from tests.support import small
from tests.support.models import wide_model

IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white"), Image.new("RGB", (9, 9))]


@pytest.fixture
def wide():
    return wide_model()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        image.save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "more.png").mkdir()
    return folder


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_a_folder_of_images(wide, folder, tmp_path):
    model, processor = wide
    output = tmp_path / "captions.jsonl"
    options = {"max_tokens": 8, "image_size": 64}
    assert caption_folder(model, processor, folder, output, "What?", batch_size=2, **options) == (3, 1)
    expected = [
        {
            "file": f"{i}.png",
            "text": generate(model, processor, "What?", image, **options),
            "finish_reason": "length",
        }
        for i, image in enumerate(IMAGES)
    ]
    *captions, broken = lines(output)
    assert captions == expected
    assert broken["file"] == "broken.jpg"
    assert "not an image" in broken["error"]


def test_a_second_run_does_only_what_is_missing(wide, folder, tmp_path, monkeypatch):
    output = tmp_path / "captions.jsonl"
    caption_folder(*wide, folder, output, "What?", max_tokens=4)
    whole = output.read_bytes()
    assert caption_folder(*wide, folder, output, "What?", max_tokens=4) == (0, 0)
    assert output.read_bytes() == whole
    kept = whole.index(b"\n") + 1
    output.write_bytes(whole[: kept + 9])  # as a crash leaves it
    asked = []
    enqueue = Engine.enqueue
    monkeypatch.setattr(Engine, "enqueue", lambda *a, **k: asked.append(a[1]) or enqueue(*a, **k))
    assert caption_folder(*wide, folder, output, "What?", max_tokens=4) == (2, 1)
    assert output.read_bytes() == whole
    assert len(asked) == 2


def test_two_processes_that_write_to_one_file(wide, folder, tmp_path):
    output = tmp_path / "captions.jsonl"
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="Another process is writing captions to"):
            caption_folder(*wide, folder, output, "What?", max_tokens=1)
    assert output.read_bytes() == b""
    assert caption_folder(*wide, folder, output, "What?", max_tokens=1) == (3, 1)


def test_lines_command_no_terminal(wide, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TextStream, "add", lambda *_: "\x1b[2J\x9b31m\x9d\x7fé")
    caption_folder(*wide, folder, tmp_path / "captions.jsonl", "What?", max_tokens=1)
    written = (tmp_path / "captions.jsonl").read_text(encoding="utf-8")
    assert "é" in written
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", written)
    assert lines(tmp_path / "captions.jsonl")[0]["text"].startswith("\x1b[2J\x9b31m\x9d\x7fé")


def test_the_progress_bar(wide, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    caption_folder(*wide, folder, tmp_path / "captions.jsonl", "What?", max_tokens=1, batch_size=2)
    err = capsys.readouterr().err
    assert [part.split("] ")[1] for part in err.split("\r")[1:]] == [
        f"{n}/4 images" + "\n" * (n == 4) for n in (0, 2, 4)
    ]


def test_folders_and_files_that_are_wrong(wide, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        caption_folder(*wide, tmp_path / "nowhere", tmp_path / "out.jsonl", "What?")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="other things than captions"):
        caption_folder(*wide, folder, tmp_path / "list.jsonl", "What?")


def test_frames_of_animations_in_a_folder(wide, tmp_path):
    folder = tmp_path / "animations"
    folder.mkdir()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    caption_folder(*wide, folder, tmp_path / "out.jsonl", "What?", max_tokens=8, frames=2)
    assert lines(tmp_path / "out.jsonl")[0]["text"] == generate(*wide, "What?", [frames[0], frames[2]], max_tokens=8)
