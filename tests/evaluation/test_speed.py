"""The benchmark measures what it says; how fast this machine is is nobody's test."""

import json
import sys

import pytest

from mlx_fastvlm import benchmark, load, load_image, startup
from mlx_fastvlm.evaluation import report, speed
from mlx_fastvlm.models import released
from tests.support.processes import run

import mlx.core as mx  # isort: skip  (after mlx_fastvlm, so that OpenBLAS is found)

DTYPE = "float32" if mx.default_device().type == mx.DeviceType.cpu else "bfloat16"  # the demo checkpoint's own


def test_json_of_the_demo(tmp_path, capsys):
    arguments = [
        "--repeats",
        "2",
        "--tokens",
        "3",
        "--image-size",
        "64",
        "--image-size",
        "128",
        "--q-bits",
        "4",
        "--json",
    ]
    assert benchmark.main([*arguments, "--image", str(image(tmp_path))]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "demo"
    assert [(row["weights"], row["image_size"]) for row in told["rows"]] == [
        (DTYPE, 64),
        (DTYPE, 128),
        ("4 bits", 64),
        ("4 bits", 128),
    ]
    for row in told["rows"]:
        figures = row["figures"]
        assert set(figures) == {*speed.STEPS, "first_token", "decode"}
        assert all(0 < figure["low"] <= figure["median"] <= figure["high"] for figure in figures.values())
        assert figures["first_token"]["high"] >= max(figures[step]["low"] for step in speed.STEPS)
    assert told["seconds"]["import"]["median"] > 0


@pytest.mark.gpu
def test_table_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra test")
    plot = tmp_path / "plot.png"
    arguments = ["--repeats", "1", "--tokens", "2", "--image", str(image(tmp_path)), "--plot", str(plot)]
    assert benchmark.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("| weights | pixels | preprocessing (s) |")
    assert lines[-1].startswith(f"| {DTYPE} |")
    assert load_image(plot).size[0] > 100


def image(folder):
    file = folder / "photo.jpg"
    file.write_bytes(speed.photo(320, 240))
    return file


def test_wrong_options(capsys):
    assert benchmark.main(["--repeats", "0"]) == 2
    assert benchmark.main(["--image-size", "100", "--repeats", "1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    with pytest.raises(SystemExit):
        benchmark.main(["--model", "folder", "--random", "0.5b"])


@pytest.fixture
def demo_shapes(monkeypatch):
    """The report measures the demo, in moments."""

    def model(size, dtype):
        assert size == "1.5b"
        return load("demo", dtype="float32")

    monkeypatch.setattr(report, "random_model", model)
    monkeypatch.setattr(report, "ENOUGH", 0.0)
    monkeypatch.setattr(report, "FEWEST", 1)
    monkeypatch.setattr(report, "photo", lambda: speed.photo(320, 240))
    monkeypatch.setattr(report, "_random", lambda *shape, dtype: mx.zeros([n // 64 or 1 for n in shape], dtype))
    monkeypatch.setattr(report, "_cases", lambda dtype: iter([("a product", 10.0, lambda: mx.zeros(3))]))


def test_a_report_is_markdown_that_grows(demo_shapes, capsys):
    arguments = ["--report", "--random", "1.5b", "--image-size", "64", "--repeats", "1", "--tokens", "2"]
    assert benchmark.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("### ")]
    assert titles == [
        "### Machine",
        "### Peaks of this machine",
        "### Operations of the tower at 1024 pixels",
        "### Steps, 1.5b shapes, 64 pixels",
        "### This device against the CPU",
    ]
    widths = [line.count(" | ") for line in lines[lines.index(titles[3]) :] if line.startswith("|")]
    assert len(set(widths[:-3])) == 1
    steps = [line.split(" | ")[0] for line in lines if "| 4 bits |" in line]
    assert steps == ["| prefill", "| first token", "| decode, tokens/s", "| peak memory, GB"]


def test_the_operations_are_those_of_the_tower(monkeypatch):
    """Nothing is computed: shapes say it."""
    monkeypatch.setattr(report, "_random", lambda *shape, dtype: mx.zeros(shape, dtype))
    shapes = {name: (flops, function().shape) for name, flops, function in report._cases(mx.bfloat16)}
    assert shapes["depthwise 7x7, stride 2, 128x128x384"] == (2 * 64 * 64 * 384 * 49, (1, 64, 64, 384))
    assert shapes["attention, 24 heads of 64 (padded)"] == (4 * 24 * 1024 * 1024 * 64, (1, 24, 1024, 64))
    assert shapes["product 280x896x4864"] == (2 * 280 * 896 * 4864, (280, 4864))
    assert len(shapes) == 10


def test_a_report_refuses_what_it_can_not_honour(capsys):
    for flag in ("--json", "--model=demo2", "--dtype=float32", "--q-bits=4", "--image=a.jpg", "--plot=a.png"):
        with pytest.raises(SystemExit, match="2"):
            benchmark.main(["--report", flag])
        assert f"--report can't be combined with {flag.partition('=')[0]}" in capsys.readouterr().err


def test_a_devices_answers_are_compared_with_the_cpus(monkeypatch):
    monkeypatch.setattr(report, "_on_gpu", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    rows = list(report._parity())
    assert rows[0][0] == "image features of the demo, float32"
    assert float(rows[0][1]) < 1e-5
    assert rows[1] == ["its answer, 40 tokens", "the same"]


def test_random_configs_are_the_released_shapes():
    config = released.random_config("0.5b")
    assert (config.text_config.hidden_size, config.text_config.vocab_size) == (896, 151936)
    assert config.tie_word_embeddings
    assert not released.random_config("7b").tie_word_embeddings
    assert released.random_config("1.5b").vision_config.hidden_size == 3072


def test_the_photo_has_a_phones_size():
    assert load_image(speed.photo()).size == (4032, 3024)
    assert len(speed.photo()) > 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one BLAS")
@pytest.mark.parametrize(("kernels", "told"), [("Haswell", "kernels for Haswell"), (None, "of MLX's wheel")])
def test_it_says_which_blas_computes(kernels, told, monkeypatch):
    """Which of OpenBLAS's kernels, too: with the ones for an older processor everything takes twice as long."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", kernels or "")
    monkeypatch.setenv("MLX_FASTVLM_OPENBLAS", "1" if kernels else "0")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if kernels and not startup.openblas():
        pytest.skip("needs OpenBLAS")
    done = run([sys.executable, "-c", "from mlx_fastvlm.evaluation.speed import machine; print(machine()['blas'])"])
    assert told in done.stdout, done.stderr
