"""Typing at a terminal: Tab, and a paste of several lines, through a real terminal."""

import io
import os
import pty
import sys

import pytest

from mlx_fastvlm.cli.inline import inline, protocol
from mlx_fastvlm.cli.lines import completions, read_line
from mlx_fastvlm.cli.repl import COMMANDS
from mlx_fastvlm.processing.prepared import ImageSettings
from mlx_fastvlm.processing.preprocess import make_image
from tests.support.images import IMAGE
from tests.support.paths import ROOT


def test_commands_and_paths(tmp_path, monkeypatch):
    (tmp_path / "photo.png").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    assert completions("/s", "/s", COMMANDS)[:2] == ["/save ", "/stats "]
    monkeypatch.chdir(tmp_path)
    assert completions("/image ph", "ph", COMMANDS) == ["photo.png ", "photos/"]
    assert completions(f"{tmp_path}/photo.", f"{tmp_path}/photo.", COMMANDS) == [f"{tmp_path}/photo.png "]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions("~/photo.", "~/photo.", COMMANDS) == ["~/photo.png "]
    assert completions("What", "What", COMMANDS) == []


def test_no_prompt_among_what_a_pipe_gets(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert read_line("> ") == "one"
    assert capsys.readouterr().out == ""


CHILD = """
from mlx_fastvlm.cli import lines
lines.prepare(["/image"])
print("READY", flush=True)
for _ in range(2):
    print("GOT", repr(lines.read_line("> ")), flush=True)
"""


@pytest.mark.parametrize("paste", [b"\x1b[200~one\ntwo\x1b[201~\n", b"one\ntwo\n"], ids=["bracketed", "plain"])
def test_a_paste_is_one_question(paste):
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", CHILD])
    shown = b""
    try:
        while shown.count(b"> ") < 1 or b"READY" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, paste)
        while shown.count(b"'\r\n") < 1:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"three\n")
        while shown.count(b"'\r\n") < 2:
            shown += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert b"GOT 'one\\ntwo'" in shown
    assert b"GOT 'three'" in shown


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "x"}, None),
    ],
)
def test_terminals_that_show_images(monkeypatch, environment, kind):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert protocol(environment) == kind
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert protocol(environment) is None


def test_what_they_are_told():
    image = make_image(IMAGE, ImageSettings(size=1024))
    kitty, iterm = inline(image, "kitty"), inline(image, "iterm2")
    assert kitty.startswith("\x1b_Gf=100,a=T,q=2,m=")
    assert kitty.count("\x1b_G") == kitty.count("\x1b\\")
    assert "m=0;" in kitty
    assert iterm.startswith("\x1b]1337;File=inline=1;size=")
    assert iterm.endswith("\x07\n")
