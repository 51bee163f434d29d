"""Ctrl-C at any line of an answer costs time, and nothing that comes after it is wrong."""

import random
from contextlib import suppress

import pytest

from mlx_fastvlm import ChatSession, PromptCache, stream_generate
from tests.support.images import PICTURE
from tests.support.interrupts import CACHES, PLACES, interrupted_at
from tests.support.models import wide_model

POLICIES = [{}, {"kv_bits": 8}, {"max_kv_size": 118}, {"max_kv_size": 118, "kv_bits": 4}]


@pytest.fixture
def wide():
    return wide_model()


def tokens(responses):
    return [response.token for response in responses]


def conversation(wide, policy):
    """A session whose bounded cache has begun to overwrite, and the first question's length."""
    session = ChatSession(*wide, max_tokens=12, **policy)
    *_, last = session.stream("What is this?", PICTURE)
    return session, last.prompt_tokens


def said_at_once(wide, session, policy):
    """What the latest question gets without a session that ever computed anything before it."""
    cache = PromptCache(**policy)
    cache.reset(session.cache.keep)
    *before, _ = session.messages
    return tokens(stream_generate(*wide, before, session.images, max_tokens=12, prompt_cache=cache))


@pytest.mark.parametrize("places", [PLACES, CACHES], ids=["anywhere", "in a cache"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_conversation_goes_on_after_any_interrupt(wide, policy, places):
    session, _ = conversation(wide, policy)
    with interrupted_at(0, places) as lines:
        session.ask("b")
    for moment in sorted(random.Random(0).sample(range(1, len(lines)), 20)):
        session, first = conversation(wide, policy)
        said = list(session.messages)
        with suppress(KeyboardInterrupt), interrupted_at(moment, places):
            session.ask("b")
        assert session.messages[: len(said)] == said, moment
        if len(session.messages) > len(said):
            assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2, moment
        answer = tokens(session.stream("c"))
        assert session.cache.keep == (first if policy.get("max_kv_size") else session.cache.keep), moment
        if "kv_bits" not in policy:  # rounded keys depend on the pieces that they came in
            assert answer == said_at_once(wide, session, policy), moment


def test_the_first_question_of_a_conversation(wide):
    """Nothing was said; the next first question is protected, and not that one."""
    for moment in range(1, 500, 25):
        session = ChatSession(*wide, max_tokens=3, max_kv_size=200)
        with suppress(KeyboardInterrupt), interrupted_at(moment):
            session.ask("What is this, and what is behind it?", PICTURE)
        if session.messages:
            continue
        *_, last = session.stream("Where?", PICTURE)
        assert session.cache.keep == last.prompt_tokens


def test_a_prompt_cache_after_any_interrupt(wide):
    """Also where no session looks after it; and by another model it is refused only while it holds something."""
    cache = PromptCache()
    with interrupted_at(0) as lines:
        plain = tokens(stream_generate(*wide, "a", PICTURE, max_tokens=5, prompt_cache=cache))
    for moment in range(1, len(lines), 23):
        cache = PromptCache()
        with suppress(KeyboardInterrupt), interrupted_at(moment):
            list(stream_generate(*wide, "a", PICTURE, max_tokens=5, prompt_cache=cache))
        assert tokens(stream_generate(*wide, "a", PICTURE, max_tokens=5, prompt_cache=cache)) == plain, moment
