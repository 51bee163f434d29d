"""One line of a length that can be read, whatever went wrong, and streams that the shell closed."""

import importlib
import sys
import warnings

import pytest

from mlx_fastvlm.__main__ import COMMANDS, MODULES
from mlx_fastvlm.cli.parser import LONGEST_LINE, Parser, run
from tests.support.images import IMAGE
from tests.support.processes import run as start


def test_a_megabyte_of_error_is_cut(capsys):
    def fail():
        raise ValueError("a" * 10**6)

    assert run(fail) == 1
    error = capsys.readouterr().err
    assert error == f"error: {'a' * LONGEST_LINE}...\n"
    with pytest.raises(SystemExit):
        Parser().parse_args(["--" + "b" * 10**6])
    assert len(capsys.readouterr().err) < LONGEST_LINE + 100


def test_a_megabyte_of_warning_is_cut(capsys):
    assert run(lambda: warnings.warn("a" * 10**6, stacklevel=1)) == 0
    assert len(capsys.readouterr().err) < LONGEST_LINE + 100


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(checkpoint, tmp_path, closed):
    IMAGE.save(tmp_path / "image.png")
    words = [sys.executable, "-m", "mlx_fastvlm.generate", "--model", checkpoint("apple"), "--max-tokens", "2"]
    words += ["--image", tmp_path / "image.png", "--prompt", "Hi"]
    done = start(["sh", "-c", f'"$@" {closed}', "sh", *words])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_every_default(name):
    """Of each flag that takes a value; those that are required have none."""
    command = importlib.import_module(f"mlx_fastvlm.{MODULES.get(name, name)}").parser()
    formatter = command._get_formatter()
    for action in command._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            text = formatter._get_help_string(action) % {**vars(action), "prog": "x"}
            assert text.endswith(")"), action.option_strings
            assert text.count("(none)") + text.count("(None)") <= 1
            if action.default not in (None, [], False):
                assert str(action.default) in text, action.option_strings
    assert "--version" in command.format_help()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_knows_its_version(name, capsys):
    command = importlib.import_module(f"mlx_fastvlm.{MODULES.get(name, name)}").parser()
    with pytest.raises(SystemExit):
        command.parse_args(["--version"])
    assert capsys.readouterr().out.startswith("mlx-fastvlm ")
