"""Streams of one conversation that overlap, in any order and in threads: the latest question rules, or is refused."""

import contextlib
import copy
import pickle
import random
import threading

import pytest

from mlx_fastvlm import ChatSession, generate, stream_generate
from tests.support.images import IMAGE, PROMPT
from tests.support.models import wide_model


@pytest.fixture
def wide():
    return wide_model()


@pytest.fixture
def session(wide):
    return ChatSession(*wide, max_tokens=6)


def questions(session):
    return [message["content"].removeprefix("<image>\n") for message in session.messages if message["role"] == "user"]


@contextlib.contextmanager
def overtaken():
    """What a stream says that can't go on is no failure; anything else is."""
    try:
        yield
    except ValueError as error:
        if "has taken over" not in str(error) and "has gone on" not in str(error):
            raise


def test_an_older_stream_that_ends_later_changes_nothing(session):
    older = session.stream("a", IMAGE)
    next(older)
    answer = session.ask("b", IMAGE)
    older.close()
    assert questions(session) == ["b"]
    assert session.messages[-1]["content"] == answer
    assert len(session.images) == 1


def test_a_reset_during_a_stream_stays(session):
    stream = session.stream("a", IMAGE)
    next(stream)
    session.reset()
    list(stream)  # may go on, since nobody else uses the cache
    assert (session.messages, session.images) == ([], [])


def test_a_question_about_a_conversation_that_has_gone_on(session):
    """Its answer would be about what was said before, and would wipe out what was said since."""
    early = session.stream("a")
    session.ask("b")
    with pytest.raises(ValueError, match="has gone on since this question was asked"):
        next(early)
    assert questions(session) == ["b"]


def test_the_older_of_two_running_streams_ends_first(session):
    older, newer = session.stream("a"), session.stream("b")
    next(older)
    next(newer)
    with pytest.raises(ValueError, match="has taken over"):
        next(older)
    list(newer)
    assert questions(session) == ["b"]


def test_a_question_that_needs_another_cache_ends_the_older_stream(wide):
    """A bounded cache that can't go back is dropped under the answer that was using it."""
    session = ChatSession(*wide, max_tokens=60, max_kv_size=110)
    session.ask("a", IMAGE)
    older = session.stream("b")
    for _ in range(40):
        next(older)
    newer = session.stream("c")
    with pytest.raises(ValueError, match="has taken over"):
        next(older)
    with pytest.raises(ValueError, match="has gone on"):  # since what the older one said until then counts
        next(newer)
    session.ask("c")
    assert questions(session) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules(wide, seed):
    """Whatever begins, goes on, is left or reset in between: the conversation holds whole turns, in order, and the
    next answer is that of the conversation at once."""
    model, processor = wide
    chance, session, running = random.Random(seed), ChatSession(model, processor, max_tokens=4), []
    for turn in range(40):
        act = chance.choice(["begin", "go on", "go on", "leave", "ask", "reset"])
        with overtaken():
            if act == "begin":
                running.append(session.stream(f"q{turn}", IMAGE if chance.random() < 0.3 else None))
                next(running[-1])
            elif act == "ask":
                session.ask(f"q{turn}")
                assert questions(session)[-1] == f"q{turn}"
            elif act == "reset":
                session.reset()
            elif running:
                stream = chance.choice(running)
                next(stream, None) if act == "go on" else stream.close()
        numbers = [int(question[1:]) for question in questions(session)]
        assert numbers == sorted(set(numbers))
        assert [message["role"] for message in session.messages] == ["user", "assistant"] * len(numbers)
        assert len(session.images) == sum(m["content"].count("<image>") for m in session.messages[::2])
    last = [response.token for response in session.stream("last")]
    *before, _ = session.messages
    whole = stream_generate(model, processor, before, session.images, max_tokens=4)
    assert last == [response.token for response in whole]


def test_threads_that_ask_the_same_session(wide):
    session, said = ChatSession(*wide, max_tokens=6), []

    def ask(name):
        for i in range(6):
            with overtaken():
                said.append((f"{name}{i}", session.ask(f"{name}{i}")))
            if name == "r":
                session.reset()

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abr"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * len(questions(session))
    answers = dict(said)
    for question, answer in zip(session.messages[::2], session.messages[1::2]):
        assert answers.get(question["content"], answer["content"]) == answer["content"]


def test_a_conversation_can_be_copied_and_pickled(wide, session):
    session.ask("a", IMAGE)
    session.ask("b")
    for copied in (copy.deepcopy(session.messages), pickle.loads(pickle.dumps(session.messages))):
        assert copied == session.messages
        assert copied[1]["content"].ids == session.messages[1]["content"].ids
        question = [*copied, {"role": "user", "content": "c"}]
        assert generate(*wide, question, session.images, max_tokens=6) == session.ask("c")
        session.reset()
        session.ask("a", IMAGE)
        session.ask("b")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}], ids=str)
def test_a_stream_that_changes_threads(wide, options):
    """As a pool of threads advances it that serves a web framework."""
    options = {"max_tokens": 9, **options}
    expected = [response.token for response in stream_generate(*wide, PROMPT, IMAGE, **options)]
    stream, tokens = stream_generate(*wide, PROMPT, IMAGE, **options), []
    for _ in expected:
        thread = threading.Thread(target=lambda: tokens.append(next(stream).token))
        thread.start()
        thread.join()
    assert tokens == expected
