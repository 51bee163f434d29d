"""Logits that are not finite end an answer with an error that names the likely cause."""

import mlx.core as mx
import pytest

from mlx_fastvlm import batch_generate, generate, load, stream_generate
from tests.support.images import IMAGE


def answers(model, processor, **options):
    """The ways to an answer."""
    yield lambda: generate(model, processor, "Hi", IMAGE, **options)
    yield lambda: batch_generate(model, processor, ["Hi", "You"], [IMAGE, None], **options)


@pytest.mark.parametrize("value", [mx.nan, mx.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_weights_are_named(checkpoint, value, temperature):
    model, processor = load(checkpoint("apple"))
    weight = model.language_model.layers[1].mlp.up_proj.weight
    weight[3, 5] = value
    for answer in answers(model, processor, temperature=temperature):
        with pytest.raises(ValueError, match=r"1 tensors .*first language_model\.layers\.1\.mlp\.up_proj\.weight"):
            answer()


def test_one_broken_row_of_the_vocabulary_is_enough(checkpoint):
    """Whatever argmax makes of a NaN among good logits."""
    model, processor = load(checkpoint("apple", head="own"))
    model.lm_head.weight[319] = mx.nan
    for answer in answers(model, processor):
        with pytest.raises(ValueError, match=r"first lm_head\.weight"):
            answer()


def test_float16_that_overflows_is_named(checkpoint):
    model, processor = load(checkpoint("apple"), dtype="float16")
    projection = model.language_model.layers[1].mlp.down_proj
    projection.weight = mx.full(projection.weight.shape, 60000.0, mx.float16)
    for answer in answers(model, processor):
        with pytest.raises(ValueError, match="float16 overflows: load the model with dtype bfloat16"):
            answer()


def test_finite_weights_that_are_far_too_large(checkpoint):
    model, processor = load(checkpoint("apple"))
    model.language_model.norm.weight = model.language_model.norm.weight * 0 + 3e38
    with pytest.raises(ValueError, match="far too large"):
        generate(model, processor, "Hi", IMAGE)


@pytest.mark.parametrize("value", [mx.nan, mx.inf])
def test_a_fault_in_the_midst_of_an_answer(small_model, value):
    """What was said before it stands, and no broken token comes after."""
    model, processor = small_model
    calls = []

    def spoil(tokens, logits):
        calls.append(tokens)
        return logits + value if len(calls) == 4 else logits

    plain = [response.token for response in stream_generate(model, processor, "Hi", IMAGE, max_tokens=3)]
    responses = stream_generate(model, processor, "Hi", IMAGE, logits_processors=[spoil])
    assert [next(responses).token for _ in range(3)] == plain
    with pytest.raises(ValueError, match="look at the logits processors"):
        next(responses)


def test_a_choice_among_nothing(small_model):
    with pytest.raises(ValueError, match="look at the logits processors"):
        generate(*small_model, "Hi", logits_processors=[lambda tokens, logits: logits - mx.inf])


def test_tokens_that_are_ruled_out_are_no_fault(small_model):
    def only_seven(tokens, logits):
        return mx.where(mx.arange(logits.shape[-1]) == 7, logits, -mx.inf)

    responses = stream_generate(*small_model, "Hi", max_tokens=3, logits_processors=[only_seven])
    assert [response.token for response in responses] == [7, 7, 7]
