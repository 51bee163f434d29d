"""The benchmark measures what it says; how fast this machine is is nobody's test."""

import json

import pytest

from mlx_fastvlm import benchmark, load_image
from mlx_fastvlm.evaluation import speed
from mlx_fastvlm.models import released


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
        ("float32", 64),
        ("float32", 128),
        ("4 bits", 64),
        ("4 bits", 128),
    ]
    for row in told["rows"]:
        figures = row["figures"]
        assert set(figures) == {*speed.STEPS, "first_token", "decode"}
        assert all(0 < figure["low"] <= figure["median"] <= figure["high"] for figure in figures.values())
        assert figures["first_token"]["high"] >= max(figures[step]["low"] for step in speed.STEPS)
    assert told["seconds"]["import"]["median"] > 0


def test_table_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    arguments = ["--repeats", "1", "--tokens", "2", "--image", str(image(tmp_path)), "--plot", str(plot)]
    assert benchmark.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("| weights | pixels | preprocessing (s) |")
    assert lines[-1].startswith("| float32 |")
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


def test_random_configs_are_the_released_shapes():
    config = released.random_config("0.5b")
    assert (config.text_config.hidden_size, config.text_config.vocab_size) == (896, 151936)
    assert config.tie_word_embeddings
    assert not released.random_config("7b").tie_word_embeddings
    assert released.random_config("1.5b").vision_config.hidden_size == 3072


def test_the_photo_has_a_phones_size():
    assert load_image(speed.photo()).size == (4032, 3024)
    assert len(speed.photo()) > 1e6
