"""Ctrl-C at any line of an answer costs time, and nothing that comes after it is wrong."""

import random
from contextlib import suppress

import pytest

from mlx_fastvlm import ChatSession, PromptCache, stream_generate
from tests.support.images import IMAGE
from tests.support.interrupts import CACHES, PROMPT_CACHES, interrupted_at, last_times
from tests.support.models import wide_model

POLICIES = [{}, {"kv_bits": 8}, {"max_kv_size": 112}, {"max_kv_size": 112, "kv_bits": 4}]


@pytest.fixture
def wide():
    return wide_model()


def tokens(responses):
    return [response.token for response in responses]


def conversation(wide, policy):
    """A session whose bounded cache has begun to overwrite, and the first question's length."""
    session = ChatSession(*wide, max_tokens=6, **policy)
    *_, last = session.stream("What is this?", IMAGE)
    return session, last.prompt_tokens


def said_at_once(wide, session, policy):
    """What the latest question gets without a session that ever computed anything before it."""
    cache = PromptCache(**policy)
    cache.reset(session.cache.keep)
    *before, _ = session.messages
    return tokens(stream_generate(*wide, before, session.images, max_tokens=6, prompt_cache=cache))


def interrupted_conversation(wide, policy, moment, **places):
    """What was said until a session was interrupted in its second answer is kept, and it goes on rightly."""
    session, first = conversation(wide, policy)
    said = list(session.messages)
    with suppress(KeyboardInterrupt), interrupted_at(moment, **places):
        session.ask("b")
    assert session.messages[: len(said)] == said, moment
    assert [message["role"] for message in session.messages] in (["user", "assistant"], ["user", "assistant"] * 2)
    answer = tokens(session.stream("c"))
    assert session.cache.keep == (first if policy.get("max_kv_size") else session.cache.keep), moment
    if "kv_bits" not in policy:  # rounded keys depend a little on the pieces that they came in
        assert answer == said_at_once(wide, session, policy), moment


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_conversation_goes_on_after_any_interrupt(wide, policy):
    session, _ = conversation(wide, policy)
    with interrupted_at(0) as lines:
        session.ask("b")
    for moment in sorted(random.Random(0).sample(range(1, len(lines)), 15)):
        interrupted_conversation(wide, policy, moment)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_and_after_an_interrupt_at_every_line_of_a_cache(wide, policy):
    """Between two of them, a cache's fields contradict each other."""
    session, _ = conversation(wide, policy)
    with interrupted_at(0, CACHES) as lines:
        session.ask("b")
    for moment in last_times(lines):
        interrupted_conversation(wide, policy, moment, places=CACHES)


def test_the_first_question_of_a_conversation(wide):
    """Nothing was said; the next first question is protected, and not that one."""
    for moment in range(1, 500, 25):
        session = ChatSession(*wide, max_tokens=3, max_kv_size=200)
        with suppress(KeyboardInterrupt), interrupted_at(moment):
            session.ask("What is this, and what is behind it?", IMAGE)
        if session.messages:
            continue
        *_, last = session.stream("Where?", IMAGE)
        assert session.cache.keep == last.prompt_tokens


@pytest.mark.parametrize("policy", [{}, {"max_kv_size": 300}], ids=str)
def test_a_prompt_cache_after_any_interrupt(wide, policy):
    """Also where no session looks after it: while it goes back to what two prompts have in common, above all."""

    def asked(question, cache):
        return tokens(stream_generate(*wide, question, IMAGE, max_tokens=2, prompt_cache=cache))

    plain, cache = asked("Why?", PromptCache(**policy)), PromptCache(**policy)
    asked("What is this?", cache)
    with interrupted_at(0, PROMPT_CACHES) as lines:
        assert asked("Why?", cache) == plain
    for moment in last_times(lines):
        cache = PromptCache(**policy)
        asked("What is this?", cache)
        with suppress(KeyboardInterrupt), interrupted_at(moment, PROMPT_CACHES):
            asked("Why?", cache)
        assert asked("Why?", cache) == plain, moment
