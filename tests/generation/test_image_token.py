"""The token that stands for an image, where it is one of the vocabulary: a model that says it shows no image."""

import dataclasses

import pytest

from mlx_fastvlm import ChatSession, Engine, stream_generate
from tests.support.images import IMAGE
from tests.support.interrupts import interrupted_at
from tests.support.models import wide_model

SAID = 310  # as in transformers' layout, a token that texts have not
ALWAYS = {"logit_bias": {SAID: 1000.0}, "max_tokens": 4}


@pytest.fixture
def wide(monkeypatch):
    model, processor = wide_model()
    monkeypatch.setattr(model.config, "image_token_id", SAID)
    return model, dataclasses.replace(processor, image_token_id=SAID)


def tokens(responses):
    return [response.token for response in responses]


def test_a_conversation_goes_on_after_an_answer_of_image_tokens(wide):
    session = ChatSession(*wide, **ALWAYS)
    assert tokens(session.stream("What is this?", IMAGE)) == [SAID] * 4
    assert tokens(session.stream("And this?", IMAGE)) == [SAID] * 4
    assert len(session.images) == 2
    free = ChatSession(*wide, max_tokens=4, prompt_cache=session.cache)
    free._conversation = session._conversation
    assert tokens(free.stream("Why?")) == tokens(
        stream_generate(*wide, [*session.messages, {"role": "user", "content": "Why?"}], session.images, max_tokens=4)
    )


def test_images_are_counted_without_those_that_were_said(wide):
    _, processor = wide
    session = ChatSession(*wide, **ALWAYS)
    session.ask("What is this?", IMAGE)
    ids = processor.encode_chat(session.messages)
    assert ids.count(SAID) == processor.num_image_tokens()


def test_an_interrupted_answer_of_image_tokens_goes_on(wide):
    """Then the answer so far is read again, with the prompt and its image."""
    engine = Engine(*wide)
    answer = engine.submit("What is this?", IMAGE, **ALWAYS)
    while answer.delivered < 2:
        engine.step()
    with pytest.raises(KeyboardInterrupt), interrupted_at(5):
        engine.step()
    assert tokens(answer) == [SAID] * 4
