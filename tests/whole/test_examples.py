"""Every example runs, with the demo checkpoint, and shows what it promises."""

import ast
import csv
import importlib.util
import json
import re
import runpy
import sys
import threading
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
FIRST = "A big blue star, a big orange square, a big green triangle and a big cyan triangle."


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as ``python examples/NAME.py ARGUMENTS`` would, and returns what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def plotting():
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra test")


def is_an_image(file):
    """That shows something."""
    with Image.open(file) as image:
        return np.asarray(image.convert("L")).std() > 5


def test_all_are_tested():
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.stem}"' in tests, example


@pytest.mark.parametrize("name", ["compare_quantization", "finetune_small", "image_encoder"])
def test_matplotlib_is_missed_before_anything_runs(run, monkeypatch, capsys, name):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
    )
    monkeypatch.setattr("mlx_fastvlm.load", lambda *_, **__: pytest.fail("it has begun"))
    with pytest.raises(SystemExit, match="2"):
        run(name, "--plot", "plot.png")
    assert "pip install matplotlib" in capsys.readouterr().err


def test_describe(run):
    assert run("describe") == FIRST + "\n"
    image = EXAMPLES / "images" / "shapes-8.png"
    assert run("describe", image, "--prompt", "What colour is it?") == "Red.\n"


def test_photos_to_table(run, tmp_path):
    table = tmp_path / "table.csv"
    printed = run("photos_to_table", "--demo", 6, "--output", table)
    assert re.findall(r"(\w+): 6 of 6 right", printed) == ["shape", "colour", "size", "circles"]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(0.5 < float(row["shape_probability"]) <= 1 for row in rows)

    schema = tmp_path / "columns.json"
    columns = {"stars": {"type": "boolean", "description": "Is there a star?"}, "size": {"enum": ["Big", "Small"]}}
    schema.write_text(json.dumps({"properties": columns}))
    run("photos_to_table", EXAMPLES / "images", "--schema", schema, "--output", tmp_path / "table.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [f"shapes-{i}.png" for i in range(1, 9)]
    assert rows[0]["stars"] is True


def test_stream(run):
    assert run("stream") == FIRST + "\n"


def test_chat_session(run):
    lines = run("chat_session").splitlines()
    assert lines[1::2] == [FIRST, "Blue.", "Big.", "A big green triangle."]
    computed = [int(re.search(r"\((\d+) of", line)[1]) for line in lines[::2]]
    assert computed[0] > 2 * max(computed[1:])


def test_batch_folder(run):
    *answers, speed = run("batch_folder", "--batch-size", "3").splitlines()
    assert len(answers) == 8
    assert answers[0] == f"shapes-1.png: {FIRST}"
    assert re.fullmatch(r"\d+\.\d\d images a second", speed)


def test_compare_quantization(run, tmp_path, plotting):
    name = "shapes-1.png"
    asked = {"question": "Describe the image.", "answer": FIRST}, {"question": "Describe the image.", "answer": "No."}
    (tmp_path / name).write_bytes((EXAMPLES / "images" / name).read_bytes())
    (tmp_path / "mine.json").write_text(json.dumps({name: {"questions": asked}}))
    plot = tmp_path / "plot.png"
    rows = run("compare_quantization", "--questions", tmp_path / "mine.json", "--plot", plot).splitlines()[1:]
    sizes = {row[:20].strip(): float(row[20:29]) for row in rows}
    assert sizes["16 bits"] > sizes["8 bits"] > sizes["4 bits"] > sizes["4 bits, vision too"]
    assert all(row.endswith(" 50.0% right") for row in rows[:3])
    assert is_an_image(plot)


def test_image_encoder(run, tmp_path, plotting):
    plot = tmp_path / "plot.png"
    options = ["--query", EXAMPLES / "images" / "shapes-3.png", "--plot", plot]
    lines = run("image_encoder", EXAMPLES / "images", *options).splitlines()
    assert "512 channels" in lines[0]
    assert lines[3] == "   1.00  shapes-3.png"  # itself
    assert is_an_image(plot)


def test_search_photos(run, tmp_path):
    photos, library = tmp_path / "photos", tmp_path / "library.db"
    photos.mkdir()
    for number in (3, 5, 8):
        still(number).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"no image")
    assert "4 to do" in run("search_photos", "index", photos, library)
    assert run("search_photos", "words", library, "orange stars") == (
        f"{photos / '5.png'}: A small orange star and a big yellow triangle.\n"
    )
    assert run("search_photos", "words", library, 'purple "unicorn') == ""
    assert run("search_photos", "image", library, photos / "8.png").startswith(f"{photos / '8.png'}: ")
    (photos / "5.png").unlink()
    assert "2 images are there already, 1 to do" in run("search_photos", "index", photos, library)  # the broken one
    assert run("search_photos", "words", library, "yellow") == ""
    with pytest.raises(SystemExit, match="made with the prompt"):
        run("search_photos", "index", photos, library, "--prompt", "Who?")


def test_captions_ray(run, tmp_path):
    pytest.importorskip("ray", reason="needs ray, of the extra ray")  # it is run in a cluster by tests/data/test_ray.py
    with pytest.raises(SystemExit, match="names no file"):
        run("captions_ray", tmp_path / "*.parquet", tmp_path / "out")


def still(number):
    return Image.open(EXAMPLES / "images" / f"shapes-{number}.png").convert("RGB").resize((256, 256))


def test_live_folders_and_animations(run, tmp_path):
    for number in (8, 5):
        still(number).save(tmp_path / f"{number}.png")
    expected = {5: "A small orange star and a big yellow triangle.", 8: "A small red triangle."}
    for line, number in zip(run("live", tmp_path).splitlines(), (5, 8)):
        assert re.fullmatch(rf" +\d+  {expected[number]}   \[[\d.]+ frames/s\]", line)
    still(8).save(tmp_path / "a.webp", save_all=True, append_images=[still(5)], lossless=True)
    lines = run("live", tmp_path / "a.webp").splitlines()
    assert [line[6:].partition("   ")[0] for line in lines] == [expected[8], expected[5]]


def test_live_videos(run, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs opencv, of the extra test")
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 2, (256, 256))
    for number in (8, 5, 5, 8, 8):
        film.write(np.asarray(still(number))[..., ::-1])
    film.release()
    lines = run("live", tmp_path / "film.avi", "--every", "1").splitlines()
    assert ["red" in line for line in lines] == [True, False, True]
    with pytest.raises(SystemExit, match="no such video"):
        run("live", tmp_path / "nothing.mp4")


def test_live_cameras(run, monkeypatch):
    """A camera that stops after one frame: that one is captioned, and the example ends."""
    cv2 = pytest.importorskip("cv2", reason="needs opencv, of the extra test")
    taken, frames = threading.Event(), [np.asarray(still(8))[..., ::-1]]

    class Camera:
        def __init__(self, number):
            self.there = number == 1

        def isOpened(self):
            return self.there

        def read(self):
            if frames:
                return True, frames.pop()
            assert taken.wait(60)
            return False, None

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Image, "fromarray", lambda *_, old=Image.fromarray: taken.set() or old(*_))
    assert run("live", "1").count("A small red triangle.") == 1
    with pytest.raises(SystemExit, match="no camera 0"):
        run("live", "0")


def test_finetune_digits(run, tmp_path, plotting):
    """A few images, a few steps, on 4 bits: the commands run, nothing held out is learnt from, and figures come."""
    few = ["--texts", 12, "--old", 3, "--held-out", 4, "--own", 4, "--valid", 3, "--iters", 3, "--rank", 2]
    few += ["--processes", 2]
    said = run("finetune_digits", "--work", tmp_path, "--q-bits", 4, *few)
    assert "images it was not trained on, read: 0.0% -> " in said
    assert "the demo's own 500 questions: " in said
    result = json.loads((tmp_path / "lora-2-on-4bit.json").read_text())
    assert result["before"]["own questions"] == 100.0
    assert result["peak_memory"] > 0
    assert all(is_an_image(tmp_path / name) for name in ("losses.png", "results.png"))
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 12 + 3
    example = runpy.run_path(str(EXAMPLES / "finetune_digits.py"))
    answers, learnt = ({example["choose_text"](Random(i), held) for i in range(2000)} for held in (True, False))
    assert answers & learnt == set(example["WORDS"])
    assert len(answers) > 150


def test_finetune_small(run, tmp_path, plotting):
    plot, saved = tmp_path / "loss.png", tmp_path / "model"
    said = run("finetune_small", "--steps", "60", "--plot", plot, "--save", saved)
    first, *_, last = (float(loss) for loss in re.findall(r"loss +([\d.]+)", said))
    assert first > 10  # what docs/reference.md says of it: from 13 to half of 0.05 in 60 steps, all eight right
    assert last < 0.05
    assert "8 of 8 right" in said
    assert is_an_image(plot)
    assert (saved / "model.safetensors").exists()


def test_the_notebook(monkeypatch, capsys, plotting):
    """Its cells still run, and say what the saved outputs say."""
    import matplotlib  # noqa: PLC0415  optional

    matplotlib.use("Agg")
    monkeypatch.chdir(EXAMPLES)
    names, checked = {}, 0
    for cell in json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = ast.parse("".join(cell["source"]))
        last = ast.Expression(code.body.pop().value) if isinstance(code.body[-1], ast.Expr) else None
        exec(compile(code, "tour.ipynb", "exec"), names)
        value = eval(compile(last, "tour.ipynb", "eval"), names) if last else None
        printed = capsys.readouterr().out
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                assert printed == "".join(output["text"])
                checked += 1
            elif "image/png" not in output["data"]:
                assert repr(value) == "".join(output["data"]["text/plain"])
                checked += 1
    assert checked == 5
