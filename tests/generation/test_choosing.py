"""A step's choosing, for a whole crowd at once: a few kernels, and for each row what it would choose alone."""

import collections
import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import GenerationOptions, generate, stream_generate
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.sampling import Sampler, choose, tokens_of
from tests.support.graphs import operations
from tests.support.images import IMAGE, PROMPT
from tests.support.models import wide_model

VOCABULARY = 500


def logits(rows, seed=0):
    return mx.array(np.random.RandomState(seed).randn(rows, VOCABULARY).astype(np.float32) * 3)


def samplers(rows, **options):
    return [Sampler(GenerationOptions(seed=i, **options), [1, 2], i) for i in range(rows)]


def kernels(monkeypatch, **options):
    """What the graph of a 16-row choice has to compute: its operations, without those that only look differently."""
    rows = logits(16)
    mx.eval(rows)
    monkeypatch.setattr(mx, "async_eval", lambda *_: None)
    picks = choose(samplers(16, **options), rows)
    names = operations(*{id(pick.choice): pick.choice for pick in picks}.popitem()[1].arrays)
    views = {"Broadcast", "Reshape", "ExpandDims", "Squeeze", "Slice", "Transpose", "Unflatten", "Flatten"}
    return collections.Counter(name for name in names if name not in views)


def test_how_many_kernels_a_step_of_16_rows_takes(monkeypatch):
    greedy = kernels(monkeypatch)
    assert greedy["ArgReduce"] == 1
    assert 2 <= greedy.total() <= 8
    nucleus = kernels(monkeypatch, temperature=0.7, top_p=0.9)
    assert nucleus["RandomBits"] == 1
    assert 10 <= nucleus.total() <= 40


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 50, "min_p": 0.02},
        {"temperature": 1.0, "logit_bias": {3: 2.0}, "logprobs": True},
        {"logprobs": True, "top_logprobs": 5},
    ],
    ids=str,
)
def test_each_row_chooses_as_if_alone(options):
    rows, crowd = logits(16), samplers(16, **options)
    alone = samplers(16, **options)
    for _ in range(3):
        together = choose(crowd, rows)
        for i, pick in enumerate(together):
            (own,) = choose([alone[i]], rows[i : i + 1])
            assert pick.token == own.token
            assert pick.logprob == pytest.approx(own.logprob, abs=1e-5)
            assert [a for a, _ in pick.alternatives or ()] == [a for a, _ in own.alternatives or ()]
    assert len({pick.token for pick in together}) > 1


def test_rows_of_different_settings_choose_in_groups():
    mixed = [*samplers(2), *samplers(2, temperature=1.0), *samplers(1), *samplers(2, temperature=1.0, top_k=3)]
    picks = choose(mixed, logits(7))
    assert len({id(pick.choice) for pick in picks}) == 3
    assert [pick.index for pick in picks] == [0, 1, 0, 1, 2, 0, 1]
    assert tokens_of(picks).tolist() == [pick.token for pick in picks]
    assert tokens_of(picks[::-2]).tolist() == [pick.token for pick in picks[::-2]]
    assert tokens_of(picks[:2]).tolist() == [picks[0].token, picks[1].token]


def test_a_crowds_random_numbers_sample_the_softmax():
    row = logits(1)
    expected = np.array(mx.softmax(row[0] / 2))
    counts = np.zeros(VOCABULARY)
    crowd = samplers(64, temperature=2.0)
    for _ in range(60):
        for pick in choose(crowd, mx.broadcast_to(row, (64, VOCABULARY))):
            counts[pick.token] += 1
    likely = expected > 0.01
    assert likely.sum() >= 5
    # Within five standard deviations of the 3,840 draws.
    assert (np.abs(counts / 3840 - expected) < 5 * np.sqrt(expected / 3840))[likely].all()


def test_a_failing_processor_takes_only_its_own_row():
    def fail(tokens, logits):
        raise KeyError("mine")

    crowd = [*samplers(2), *samplers(1, logits_processors=[fail]), *samplers(1)]
    crowd += samplers(1, logits_processors=[lambda tokens, logits: logits[:, :7]])
    picks = choose(crowd, logits(5))
    assert isinstance(picks[2], KeyError)
    assert "all of them" in str(picks[4])
    assert [picks[i].token for i in (0, 1, 3)] == mx.argmax(logits(5), axis=-1)[mx.array([0, 1, 3])].tolist()


# The options that clients send


def test_the_likeliest_tokens(untied_model):
    *_, last = responses = list(
        stream_generate(*untied_model, PROMPT, IMAGE, max_tokens=4, top_logprobs=5, min_tokens=4)
    )
    for response in responses:
        assert len(response.top_logprobs) == 5
        assert response.top_logprobs[0].token == response.token
        assert response.top_logprobs[0].logprob == pytest.approx(response.logprob)
        values = [one.logprob for one in response.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert response.top_logprobs[1].text == untied_model[1].decode([response.top_logprobs[1].token])
    assert last.finish_reason == "length"


def test_presence_and_frequency_penalties_are_openais():
    """Off the logits of the answer's tokens, not of the prompt's: once, and once for each time."""
    options = GenerationOptions(presence_penalty=1.5, frequency_penalty=0.25)
    sampler, plain = Sampler(options, [7, 8], 0, said=[5, 9, 5]), logits(1)
    changed = np.array(sampler.processed(plain) - plain)[0]
    expected = np.zeros(VOCABULARY)
    expected[5], expected[9] = -1.5 - 2 * 0.25, -1.5 - 0.25
    assert np.abs(changed - expected).max() < 1e-6


def test_min_tokens_keeps_the_model_from_ending():
    model, processor = wide_model()
    ends = frozenset(range(0, 320, 2))
    processor = dataclasses.replace(processor, eos_token_ids=ends | {10**6})
    short = list(stream_generate(model, processor, PROMPT, max_tokens=20))
    assert len(short) < 9
    longer = list(stream_generate(model, processor, PROMPT, max_tokens=20, min_tokens=9))
    assert len(longer) >= 9
    assert not any(response.token in ends for response in longer[:9])
    assert longer[-1].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    "option",
    [
        {"top_logprobs": 21},
        {"top_logprobs": -1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"min_tokens": 9, "max_tokens": 8},
    ],
    ids=str,
)
def test_values_that_can_not_be(untied_model, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        generate(*untied_model, PROMPT, **option)
