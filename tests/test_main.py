"""``fastvlm COMMAND`` and ``python -m mlx_fastvlm COMMAND``: which command is called, and what is said of others."""

import os
import signal
import sys
import types
from pathlib import Path

import pytest

import mlx_fastvlm
from mlx_fastvlm.__main__ import COMMANDS, MODULES, main
from tests.support.paths import ROOT
from tests.support.processes import run, start


@pytest.fixture
def called(monkeypatch):
    """Commands that only note which of them was called, and with what; each returns another exit code."""
    calls = []
    for code, name in enumerate(COMMANDS, 40):
        command = types.SimpleNamespace(main=lambda flags, name=name, code=code: calls.append((name, flags)) or code)
        monkeypatch.setitem(sys.modules, f"mlx_fastvlm.{MODULES.get(name, name)}", command)
    return calls


def test_every_command_is_called_with_its_flags(called):
    for code, name in enumerate(COMMANDS, 40):
        assert main([name, "--model", "demo", "--help"]) == code
        assert called.pop() == (name, ["--model", "demo", "--help"])
    assert called == []


def test_a_flag_first_means_generate(called):
    main(["--image", "chat"])
    assert called == [("generate", ["--image", "chat"])]


@pytest.mark.parametrize("word", ["photo.jpg", "https://x.y/z", "What is this?"])
def test_an_image_or_a_question_first_means_generate(called, word):
    main([word, "Why?"])
    assert called == [("generate", [word, "Why?"])]


def test_every_command_of_the_package_is_listed():
    """A module with a parser and a main of its own is one, or a room with such a module as its __main__."""
    here = Path(mlx_fastvlm.__file__).parent
    files = [*here.glob("*.py"), *here.glob("*/__main__.py")]
    mains = [file for file in files if "\ndef main(" in file.read_text(encoding="utf-8")]
    commands = {file.stem if file.parent == here else file.parent.name for file in mains}
    assert commands - {"__main__"} == COMMANDS.keys()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_help_lists_the_commands(called, words, capsys):
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert all(f"  {name} " in out for name in COMMANDS)
    assert (called, err) == ([], "")


def test_version(called, capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlx-fastvlm {mlx_fastvlm.__version__}\n"
    assert called == []


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("chta", "did you mean chat?"),
        ("generat", "did you mean generate?"),
        ("photo", "there are generate, caption, chat, lora, fuse, convert, evaluate, benchmark"),
        ("errors", "there are"),  # a module of the package that is no command
        ("\x1b[2J", "there are"),
    ],
)
def test_an_unknown_command(called, word, advice, capsys):
    assert main([word, "--help"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: there is no command {word!r}; {advice}")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert called == []


def test_exit_codes_of_a_process():
    def code(*words):
        return run([sys.executable, "-m", "mlx_fastvlm", *words]).returncode

    assert code("--version") == 0
    assert code("convert", "--help") == 0
    assert code("chatt") == 2
    assert code("convert", "--nothing") == 2
    assert code("--model", "nowhere", "--image", "x.png") == 1


@pytest.mark.parametrize("words", [["mlx_fastvlm"], ["mlx_fastvlm", "chat"], ["mlx_fastvlm.convert"]], ids=" ".join)
def test_ctrl_c_while_a_command_is_imported(words, tmp_path):
    (tmp_path / "numpy.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    module, *command = words
    # "generate" is what a flag means; convert and chat import numpy too.
    process = start(
        [sys.executable, "-m", module, *command, "--nothing"], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # as the system reports what a signal ended; a shell says 130
    assert error == "interrupted\n"


def test_ctrl_c_in_another_program_is_left_alone():
    """A traceback in somebody's own program is theirs, also if it imports this package."""
    code = "import mlx_fastvlm, sys; assert sys.excepthook is sys.__excepthook__"
    assert run([sys.executable, "-c", code]).returncode == 0
