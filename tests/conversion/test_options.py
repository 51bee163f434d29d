"""The converter's options: shown, typed, and refused where they do nothing."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

from mlx_fastvlm import convert
from mlx_fastvlm.conversion.options import ConversionKeywords, ConversionOptions
from mlx_fastvlm.convert import main
from mlx_fastvlm.errors import UsageError
from tests.support.paths import ROOT, left


def test_the_keywords_are_the_options():
    fields = {field.name: field.type for field in dataclasses.fields(ConversionOptions)}
    keywords = {name: kind.__forward_arg__ for name, kind in ConversionKeywords.__annotations__.items()}
    assert keywords == fields
    assert not ConversionKeywords.__required_keys__


def test_help_and_completion_show_the_options():
    shown = inspect.signature(convert).parameters
    assert list(shown)[:4] == ["hf_path", "mlx_path", "quantize", "q_bits"]
    options = {f.name: f.default for f in dataclasses.fields(ConversionOptions)}
    assert {name: shown[name].default for name in options} == options


def test_mypy_refuses_a_wrong_keyword(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy, of the extra test")
    (tmp_path / "program.py").write_text(
        "from mlx_fastvlm.conversion.converter import convert\n"
        'report = convert("demo", "out", quantize=True, q_bits=8, verify=False)\n'
        "print(report.bits_per_weight + 1)\n"
        'convert("demo", "out", quantise=True)\n'
        'convert("demo", "out", q_bits="8")\n'
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file",
        ROOT / "pyproject.toml",
        "program.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"MYPYPATH": str(ROOT)})
    wrong = [line for line in done.stdout.splitlines() if line.startswith("program.py") and ": error:" in line]
    assert [line.split(":")[1] for line in wrong] == ["4", "5"], done.stdout + done.stderr


USELESS = {
    "q_bits": 8,
    "q_group_size": 32,
    "q_mode": "mxfp4",
    "q_vision": True,
    "q_mixed": True,
}


@pytest.mark.parametrize("name", USELESS)
def test_how_to_quantize_without_quantizing(tmp_path, name):
    with pytest.raises(UsageError, match=f"^{name} says how to quantize; add quantize"):
        convert("demo", tmp_path / "out", **{name: USELESS[name]})
    assert left(tmp_path) == []


def test_the_command_refuses_them_too(tmp_path, capsys):
    words = ["--hf-path", "demo", "--mlx-path", str(tmp_path / "out")]
    for flags in (["--q-mixed"], ["--q-vision"]):
        assert main([*words, *flags]) == 2
        name = flags[0].removeprefix("--").replace("-", "_")
        assert capsys.readouterr().err.startswith(f"error: {name} says how to quantize")
    assert main([*words, "-q", "--q-mode", "mxfp4", "--q-bits", "8"]) == 2
    assert "q_mode mxfp4 has q_bits 4 only, got 8" in capsys.readouterr().err
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_mode": "mxfp4", "q_group_size": 64}, "has q_group_size 32 only, got 64"),
        ({"q_mode": ["affine"]}, "q_mode must be"),
        ({"q_bits": 4.0}, r"q_bits must be one of .* got 4\.0"),
        ({"q_bits": True}, "q_bits must be one of"),
        ({"q_group_size": "64"}, "q_group_size must be one of"),
        ({"q_mixed": "yes"}, "q_mixed must be True or False"),
        ({"progress": 3}, "progress must be a function"),
        ({"force": None}, "force must be True or False"),
    ],
)
def test_values_of_wrong_types(options, message):
    with pytest.raises(UsageError, match=message):
        ConversionOptions(quantize=True, **options)


def test_a_mode_may_be_told_what_it_has_anyway():
    ConversionOptions(quantize=True, q_mode="mxfp4", q_bits=4, q_group_size=32)


def test_progress_adds_up(checkpoint, tmp_path):
    told = []
    report = convert(checkpoint("apple"), tmp_path / "out", progress=lambda *step: told.append(step))
    for step, total in (("writing", report.size_after), ("verifying", 9)):
        assert {t for s, _, t in told if s == step} == {total}
        assert sum(amount for s, amount, _ in told if s == step) == total
