"""The chat in the terminal, and its command."""

import json
import sys

import pytest
from PIL import Image

from mlx_fastvlm import ChatSession, chat
from mlx_fastvlm.cli.repl import Repl
from mlx_fastvlm.generation.text import TextStream
from tests.support.images import IMAGE
from tests.support.models import wide_model


@pytest.fixture
def wide():
    return wide_model()


@pytest.fixture
def talk(wide, monkeypatch, capsys):
    """Types lines; returns the session, what went to stdout and what to stderr."""

    def talk(*lines, images=(), **options):
        waiting = iter(lines)

        def type_next(_):
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", type_next)
        session = ChatSession(*wide, max_tokens=4, **options)
        Repl(session, list(images)).run()
        return session, *capsys.readouterr()

    return talk


@pytest.fixture
def image(tmp_path):
    IMAGE.save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def test_talking(talk, image):
    session, out, err = talk("/stats", "Hi", "", f"/image {image}", "What?", "And?", "/quit", "never asked")
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3
    assert session.messages[2]["content"] == "<image>\nWhat?"
    assert err.count("first token after") == 3
    assert err.count("cached") == 2
    assert session.messages[1]["content"] in out


def test_commands(talk, image, tmp_path):
    file = tmp_path / "talk.json"
    session, _, err = talk("Hi", f"/save {file}", "/reset", "/help", "/nothing", "/image", "/save", images=[image])
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved[0] == {"role": "user", "content": "<image>\nHi"}
    assert [message["role"] for message in saved] == ["user", "assistant"]
    assert session.messages == []
    for words in ("/image IMAGE", "no command /nothing", "/image needs", "/save needs", "Saved 2", "new conversation"):
        assert words in err


def test_errors_and_ctrl_c_end_an_answer_and_not_the_chat(talk, wide, monkeypatch):
    session, _, err = talk("/image nowhere.png", "<image>", KeyboardInterrupt(), "Hi")
    assert "error: nowhere.png" in err
    assert "error: The prompt has 1 <image> mark" in err
    assert [message["content"] for message in session.messages][0::2] == ["Hi"]

    add, calls = TextStream.add, []

    def interrupted(self, token):
        calls.append(token)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, token)

    monkeypatch.setattr(TextStream, "add", interrupted)
    session, out, _ = talk("Hi", "Go on")
    assert "[stopped]" in out
    assert len(session.messages[1]["content"].ids) == 2
    assert len(session.messages) == 4


def test_ctrl_c_before_the_first_token_keeps_the_image(talk, image, monkeypatch):
    begun, add = [], TextStream.add

    def interrupted(self, token):
        begun.append(token)
        if len(begun) == 1:
            raise KeyboardInterrupt
        return add(self, token)

    monkeypatch.setattr(TextStream, "add", interrupted)
    session, _, err = talk(f"/image {image}", "What?", "And now?")
    assert [message["content"] for message in session.messages][0::2] == ["<image>\nAnd now?"]
    assert "the image goes with the next question" in err


@pytest.mark.parametrize("line", ["{escaped}", "'{path}'", "{path}", "/image {path}", "/image {escaped} '{path}'"])
def test_dragged_images(talk, tmp_path, line):
    path = tmp_path / "my photo.png"
    IMAGE.save(path)
    session, _, err = talk(line.format(path=path, escaped=str(path).replace(" ", "\\ ")), "What?")
    assert session.messages[0]["content"].endswith("<image>\nWhat?")
    assert "error" not in err


def test_an_image_and_a_question_on_one_line(talk, image):
    session, _, err = talk(f"{image} What's this?", "/no/such.png")
    assert session.messages[0]["content"] == "<image>\nWhat's this?"
    assert "/no/such.png: no such file" in err


@pytest.mark.parametrize("end", ["/quit", "/exit", "exit", "quit", "q"])
def test_ways_to_leave(talk, end):
    session, _, _ = talk(end, "never asked")
    assert session.messages == []


def test_save_overwrites_nothing(talk, tmp_path):
    (tmp_path / "talk.json").write_text("mine")
    _, _, err = talk("Hi", f"/save {tmp_path / 'talk.json'}", "/clear")
    assert "already exists" in err
    assert (tmp_path / "talk.json").read_text() == "mine"


def test_images_are_shown_where_the_terminal_can(wide, image, monkeypatch, capsys):
    monkeypatch.setattr("mlx_fastvlm.cli.repl.protocol", lambda: "kitty")
    Repl(ChatSession(*wide), [image])
    assert "\x1b_Gf=100" in capsys.readouterr().err


def test_every_flag_reaches_the_session(checkpoint, image, monkeypatch):
    seen = {}

    def session(model, processor, options):
        seen.update(vars(options))
        raise ValueError("seen")

    monkeypatch.setattr(chat.ChatSession, "from_options", session)
    options = {
        "system": "s",
        "image_size": 64,
        "frames": 2,
        "vision_batch_size": 2,
        "max_tokens": 7,
        "temperature": 0.5,
    }
    options |= {"top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 4, "repetition_penalty": 1.1}
    options |= {"repetition_context_size": 9, "max_kv_size": 500, "kv_bits": 4, "kv_group_size": 32}
    options |= {"prefill_step_size": 100}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert chat.main(["--model", str(checkpoint("apple")), *flags, "--stop", "x", "--logit-bias", "7:2"]) == 1
    assert options.items() <= seen.items()
    assert (seen["stop"], seen["logit_bias"]) == (["x"], {7: 2.0})


def test_the_command(checkpoint, image, monkeypatch, capsys):
    lines = iter(["What?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    arguments = ["--model", str(checkpoint("apple")), "--image", image, "--max-tokens", "3", "--max-kv-size", "500"]
    assert chat.main(arguments) == 0
    assert capsys.readouterr().err.endswith("\n(stopped at --max-tokens)\n")
    assert chat.main([*arguments, "--top-p", "7"]) == 2
    assert "readline" in sys.modules
    assert chat.main([*arguments, "--image", "nowhere.png"]) == 1


def test_frames_in_a_conversation(talk, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    session, _, _ = talk(f"/image {tmp_path / 'a.gif'}", "What?", frames=2)
    assert session.messages[0]["content"] == "<image>\n<image>\nWhat?"
    assert [image.pixels[0, 0].tolist() for image in session.images] == [[255, 0, 0], [0, 0, 255]]
    assert session.ask("b", str(tmp_path / "a.gif")) is not None
    assert len(session.images) == 4
