"""Conversations: a session computes what is new, and says what the whole conversation at once would."""

import dataclasses
import json
import sys

import pytest
from conftest import wide_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import small
from mlx_fastvlm import ChatSession, PromptCache, chat, stream_generate
from mlx_fastvlm.cli.repl import Repl
from mlx_fastvlm.processing.messages import Answer

PICTURES = [Image.fromarray(small.odd_picture(70, 50)), Image.new("RGB", (40, 60), "white")]
TURN = st.tuples(st.text("abc <é", min_size=1, max_size=20), st.lists(st.sampled_from(PICTURES), max_size=2))


@pytest.fixture
def wide():
    return wide_model()


@settings(max_examples=15, deadline=None)
@given(
    turns=st.lists(TURN, min_size=1, max_size=4),
    ends=st.sets(st.integers(0, 255), max_size=80),
    policy=st.sampled_from([{}, {"prefill_step_size": 5}, {"max_kv_size": 150}]),
    stop=st.sampled_from([None, ["a", "\ufffd\ufffd"]]),
)
def test_a_session_equals_the_whole_conversation_at_once(turns, ends, policy, stop):
    model, processor = wide_model()
    processor = dataclasses.replace(processor, eos_token_ids=frozenset({*ends, 258}))
    session = ChatSession(model, processor, max_tokens=7, stop=stop, **policy)
    for text, images in turns:
        ours = [response.token for response in session.stream(text, images)]
        *before, _ = session.messages
        cache = PromptCache(policy.get("max_kv_size"))
        cache.reset(session.cache.keep)  # the session protects its first question, and not the last
        options = {"max_tokens": 7, "stop": stop, "prompt_cache": cache}
        whole = stream_generate(model, processor, before, session.pictures, **options)
        assert ours == [response.token for response in whole]


def test_a_follow_up_prefills_only_its_own_tokens(wide):
    model, processor = wide
    session = ChatSession(model, processor, max_tokens=6)
    first = list(session.stream("What is this?", PICTURES[0]))[-1]
    assert first.cached_tokens == 0
    second = list(session.stream("Why?"))[-1]
    # The answer's last token and the question around it are new.
    own = processor.encode("<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    assert second.prompt_tokens - second.cached_tokens == 1 + len(own)
    assert second.cached_tokens == first.prompt_tokens + 5
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2


def test_a_bounded_session_keeps_its_first_question(wide):
    """However long it gets; and the answers are those of one cache that saw it all."""
    model, processor = wide
    ids = processor.encode_chat([{"role": "user", "content": "<image>\na"}])
    for bits in (None, 8):
        session = ChatSession(model, processor, max_tokens=20, max_kv_size=len(ids) + 30, kv_bits=bits)
        for question in "abcdefgh":
            last = list(session.stream(question, PICTURES[0] if question == "a" else None))[-1]
        assert session.cache.keep == len(ids)
        assert session.cache.offset > 2 * session.cache.max_kv_size
        assert last.prompt_tokens - last.cached_tokens < 60


def test_an_answer_left_early_is_remembered_so_far(wide):
    for policy in ({}, {"max_kv_size": 110}):
        session = ChatSession(*wide, max_tokens=40, **policy)
        session.ask("a", PICTURES[0])
        stream = session.stream("b")
        said = [next(stream).token for _ in range(5)]
        stream.close()
        assert session.messages[-1]["content"].ids == tuple(said)
        answer = session.ask("c")
        if not policy:
            *before, _ = session.messages
            whole = stream_generate(*wide, before, session.pictures, max_tokens=40)
            assert answer == "".join(response.text for response in whole)


def test_what_a_stop_string_cut_off_was_never_said(wide):
    model, processor = wide
    plain = ChatSession(model, processor, max_tokens=30).ask("a")
    stop = next(c for c in plain[3:] if c.isascii() and c.isalpha())
    for policy in ({}, {"max_kv_size": 80}):
        session = ChatSession(model, processor, max_tokens=30, stop=stop, **policy)
        assert session.ask("a") == plain[: plain.index(stop)]
        session.ask("b")
        assert stop not in session.messages[1]["content"]
        assert processor.encode(stop)[0] not in session.messages[1]["content"].ids


def test_nothing_changes_when_a_question_is_refused(wide):
    session = ChatSession(*wide, system="Be brief.", max_tokens=4)
    session.ask("a")
    before = list(session.messages)
    with pytest.raises(FileNotFoundError):
        session.stream("b", "nowhere.png")
    with pytest.raises(ValueError, match="one mark for each"):
        session.stream("<image>")
    session.stream("never read")
    assert session.messages == before
    session.reset()
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    assert list(session.stream("a"))[-1].cached_tokens > 0  # the system prompt


def test_an_answer_that_ends_at_once_is_an_answer(wide):
    model, processor = wide
    session = ChatSession(model, dataclasses.replace(processor, eos_token_ids=frozenset(range(320))))
    assert session.ask("a") == ""
    assert len(session.messages) == 2
    assert session.ask("b") == ""


def test_ten_questions_encode_a_picture_once(wide, monkeypatch):
    model, processor = wide
    calls = []
    encode = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda self, x: calls.append(1) or encode(self, x))
    session = ChatSession(model, processor, max_tokens=2)
    session.ask("What is this?", PICTURES[0])
    for i in range(9):
        session.ask(f"Question {i}?")
    session.reset()
    session.ask("And again?", PICTURES[0])
    assert calls == [1]


def test_an_answers_ids_and_no_marks_in_it(wide):
    _, processor = wide
    answer = Answer("<image> <|im_end|>", [1, 2, 3])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    ids = processor.encode_chat(messages)
    assert ids.count(processor.image_token_id) == 0
    start = len(processor.encode_chat(messages[:1]))
    assert ids[start : start + 4] == [1, 2, 3, 258]


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
def picture(tmp_path):
    PICTURES[0].save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_talking(talk, picture):
    session, out, err = talk("Hi", "", f"/image {picture}", "What?", "And?", "/quit", "never asked")
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3
    assert session.messages[2]["content"] == "<image>\nWhat?"
    assert err.count("first token after") == 3
    assert err.count("cached") == 2
    assert session.messages[1]["content"] in out


def test_commands(talk, picture, tmp_path):
    file = tmp_path / "talk.json"
    session, _, err = talk("Hi", f"/save {file}", "/reset", "/help", "/nothing", "/image", "/save", images=[picture])
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved[0] == {"role": "user", "content": "<image>\nHi"}
    assert [message["role"] for message in saved] == ["user", "assistant"]
    assert session.messages == []
    for words in ("/image PICTURE", "no command /nothing", "/image needs", "/save needs"):
        assert words in err


def test_errors_and_ctrl_c_end_an_answer_and_not_the_chat(talk, wide, monkeypatch):
    session, _, err = talk("/image nowhere.png", "<image>", KeyboardInterrupt(), "Hi")
    assert "error: nowhere.png" in err
    assert "error: The prompt has 1 <image> mark" in err
    assert [message["content"] for message in session.messages][0::2] == ["Hi"]

    from mlx_fastvlm.generation.text import TextStream

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


def test_every_flag_reaches_the_session(checkpoint, picture, monkeypatch):
    seen = {}

    def session(model, processor, **options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr(chat, "ChatSession", session)
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


def test_the_command(checkpoint, picture, monkeypatch, capsys):
    lines = iter(["What?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    arguments = ["--model", str(checkpoint("apple")), "--image", picture, "--max-tokens", "3", "--max-kv-size", "500"]
    assert chat.main(arguments) == 0
    assert "answer: 3 tokens" in capsys.readouterr().err
    assert chat.main([*arguments, "--top-p", "7"]) == 2
    assert "readline" in sys.modules
    assert chat.main([*arguments, "--image", "nowhere.png"]) == 1


def test_frames_in_a_conversation(talk, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    session, _, _ = talk(f"/image {tmp_path / 'a.gif'}", "What?", frames=2)
    assert session.messages[0]["content"] == "<image>\n<image>\nWhat?"
    assert [picture[0, 0].tolist() for picture in session.pictures] == [[255, 0, 0], [0, 0, 255]]
    assert session.ask("b", str(tmp_path / "a.gif")) is not None
    assert len(session.pictures) == 4
