"""``astream_generate``: the same responses, while the loop does something else; errors; answers that are left."""

import asyncio

import pytest

from mlx_fastvlm import astream_generate, stream_generate
from tests.support.images import IMAGE


@pytest.fixture
def model(untied_model):
    return untied_model[0]


@pytest.fixture
def processor(untied_model):
    return untied_model[1]


async def collect(*arguments, **options):
    return [response.token async for response in astream_generate(*arguments, **options)]


def test_the_same_responses(model, processor):
    expected = [r.token for r in stream_generate(model, processor, "What?", IMAGE, max_tokens=6)]
    assert asyncio.run(collect(model, processor, "What?", IMAGE, max_tokens=6)) == expected


def test_several_at_once_and_a_loop_that_stays_free(model, processor):
    async def both():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        answers = await asyncio.gather(*(collect(model, processor, text, max_tokens=6) for text in ("What?", "Why?")))
        counting.cancel()
        return answers, turns

    answers, turns = asyncio.run(both())
    for text, tokens in zip(("What?", "Why?"), answers):
        assert tokens == [r.token for r in stream_generate(model, processor, text, max_tokens=6)]
    assert turns > 6


def test_errors_come_with_the_first_response(model, processor):
    with pytest.raises(FileNotFoundError):
        asyncio.run(collect(model, processor, "What?", "no-such-file.png"))
    with pytest.raises(TypeError, match="did you mean temperature"):
        asyncio.run(collect(model, processor, "What?", temp=1))


def test_an_answer_that_is_left(model, processor):
    async def leave():
        responses = astream_generate(model, processor, "What?", max_tokens=500)
        response = await anext(responses)
        await responses.aclose()
        return response

    assert asyncio.run(leave()).generation_tokens == 1
