"""How a command shows why an answer ended, and what else might have come."""

import json
import re
import shutil

import pytest

from mlx_fastvlm.chat import main as chat
from mlx_fastvlm.generate import main
from mlx_fastvlm.generation.text import TextStream
from tests.support.images import IMAGE


@pytest.fixture
def model(checkpoint):
    return ["--model", str(checkpoint("apple"))]


def test_an_answer_that_was_cut_says_so(model, capsys, monkeypatch):
    assert main([*model, "--prompt", "Hi", "--max-tokens", "3"]) == 0
    assert "answer: 3 tokens (stopped at --max-tokens)," in capsys.readouterr().err
    ends = ["--logit-bias", "258:1e9"]  # the end of a turn
    assert main([*model, "--prompt", "Hi", "--max-tokens", "3", *ends]) == 0
    err = capsys.readouterr().err
    assert "answer: 1 tokens," in err
    assert "stopped at" not in err
    lines = iter(["Hi", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    assert chat([*model, "--max-tokens", "3"]) == 0
    assert "(stopped at --max-tokens)" in capsys.readouterr().err


def test_json_commands_no_terminal(model, capfd, monkeypatch):
    """The controls that JSON itself does not escape, CSI and OSC among them."""
    monkeypatch.setattr(TextStream, "add", lambda *_: "\x1b[2J\x9b31m\x9d\x7f\xa0")
    assert main([*model, "--prompt", "Hi", "--max-tokens", "1", "--json"]) == 0
    out = capfd.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert json.loads(out)["text"].startswith("\x1b[2J\x9b31m\x9d\x7f\xa0")


def test_the_likeliest_tokens_in_json(model, capsys):
    assert main([*model, "--prompt", "Hi", "--max-tokens", "3", "--json", "--top-logprobs", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["finish_reason"] == "length"
    assert len(answer["tokens"]) == 3
    for token in answer["tokens"]:
        assert [sorted(one) for one in token["top_logprobs"]] == [["logprob", "text", "token"]] * 2
        assert token["top_logprobs"][0]["token"] == token["token"]
    assert "top_logprobs" not in answer
    with pytest.raises(SystemExit):
        main([*model, "--top-logprobs", "2"])
    assert "--top-logprobs needs --json" in capsys.readouterr().err


def test_penalties_and_the_least_length_are_flags(model, capsys):
    flags = ["--presence-penalty", "1", "--frequency-penalty", "0.5", "--min-tokens", "3", "--logit-bias", "258:1e9"]
    assert main([*model, "--prompt", "Hi", "--max-tokens", "5", "--json", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["generation_tokens"], answer["finish_reason"]) == (4, "stop")


def test_an_answer_that_must_match(capsys, tmp_path):
    demo = ["--model", "demo", "--prompt", "What?"]
    assert main([*demo, "--regex", "[a-z]{3}"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"[a-z]{3}\n", out)
    assert "warning" not in err
    assert main([*demo, "--regex", "a{9}", "--max-tokens", "2"]) == 0
    assert "warning: The answer was cut at max_tokens=2, before it kept to its regex" in capsys.readouterr().err
    assert main([*demo, "--regex", "("]) == 2
    assert re.fullmatch(r"(note: .*\n)?error: regex can't be compiled .*\n", capsys.readouterr().err)
    for flag in ("--json-schema", "--grammar"):
        with pytest.raises(SystemExit, match="2"):
            main([*demo, flag, str(tmp_path / "none")])
        assert re.fullmatch(rf"error: argument {flag}: .*none.*\n", capsys.readouterr().err)
    (tmp_path / "schema.json").write_text("{")
    assert main([*demo, "--json-schema", str(tmp_path / "schema.json")]) == 2
    assert re.fullmatch(r"error: json_schema is not JSON .*\n", capsys.readouterr().err)


def test_only_a_size_that_training_did_not_see_is_noted(checkpoint, capsys, tmp_path):
    several = shutil.copytree(checkpoint("apple"), tmp_path / "several")
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps({**config, "trained_image_sizes": [64, 128]}))
    IMAGE.save(tmp_path / "image.png")
    asked = ["--model", str(several), "--max-tokens", "2", str(tmp_path / "image.png"), "--image-size"]
    assert main([*asked, "64"]) == 0
    assert "note" not in capsys.readouterr().err
    assert main([*asked, "192"]) == 0
    assert "note: this checkpoint was trained on images of 64, 128 pixels; at 192" in capsys.readouterr().err


def test_what_is_told_besides(model, capsys, monkeypatch, tmp_path):
    """Of a model that takes long to load, a size that it was not trained for, a missing image; and of nothing."""
    IMAGE.save(tmp_path / "image.png")
    short = [*model, "--max-tokens", "2"]
    monkeypatch.setattr("mlx_fastvlm.cli.flags.LARGE", 0)
    assert main([*short, "Hi"]) == 0
    told = capsys.readouterr().err
    assert "note: no image is given" in told
    assert re.search(r"^loading .* GB\) \.\.\.$", told, re.M)
    assert main([*short, str(tmp_path / "image.png"), "--image-size", "64", "--verbose"]) == 0
    told = capsys.readouterr().err
    assert "trained on images of 128 pixels; at 64" in told
    assert "pad to 64 x 64 pixels, 1 tokens each" in told
    assert main([*short, "Hi", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "(stopped at --max-tokens)\n")
