"""Conversations: a session computes what is new, and says what the whole conversation at once would."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_fastvlm import ChatSession, PromptCache, stream_generate
from mlx_fastvlm.processing.marks import AnswerText
from tests.support.images import IMAGE
from tests.support.models import wide_model

IMAGES = [IMAGE, Image.new("RGB", (40, 60), "white")]
TURN = st.tuples(st.text("abc <é", min_size=1, max_size=20), st.lists(st.sampled_from(IMAGES), max_size=2))


@pytest.fixture
def wide():
    return wide_model()


@settings(max_examples=15)
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
        whole = stream_generate(model, processor, before, session.images, **options)
        assert ours == [response.token for response in whole]


def test_a_follow_up_prefills_only_its_own_tokens(wide):
    model, processor = wide
    session = ChatSession(model, processor, max_tokens=6)
    first = list(session.stream("What is this?", IMAGES[0]))[-1]
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
            last = list(session.stream(question, IMAGES[0] if question == "a" else None))[-1]
        assert session.cache.keep == len(ids)
        assert session.cache.offset > 2 * session.cache.max_kv_size
        assert last.prompt_tokens - last.cached_tokens < 60


def test_an_answer_left_early_is_remembered_so_far(wide):
    for policy in ({}, {"max_kv_size": 110}):
        session = ChatSession(*wide, max_tokens=40, **policy)
        session.ask("a", IMAGES[0])
        stream = session.stream("b")
        said = [next(stream).token for _ in range(5)]
        stream.close()
        assert session.messages[-1]["content"].ids == tuple(said)
        answer = session.ask("c")
        if not policy:
            *before, _ = session.messages
            whole = stream_generate(*wide, before, session.images, max_tokens=40)
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


def test_ten_questions_encode_an_image_once(wide, monkeypatch):
    model, processor = wide
    calls = []
    encode = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda self, x: calls.append(1) or encode(self, x))
    session = ChatSession(model, processor, max_tokens=2)
    session.ask("What is this?", IMAGES[0])
    for i in range(9):
        session.ask(f"Question {i}?")
    session.reset()
    session.ask("And again?", IMAGES[0])
    assert calls == [1]


def test_an_answers_ids_and_no_marks_in_it(wide):
    _, processor = wide
    answer = AnswerText("<image> <|im_end|>", [1, 2, 3])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    ids = processor.encode_chat(messages)
    assert ids.count(processor.image_token_id) == 0
    start = len(processor.encode_chat(messages[:1]))
    assert ids[start : start + 4] == [1, 2, 3, 258]
