"""Choosing the next token: every option does what it says."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import stream_generate
from mlx_fastvlm.errors import UsageError
from tests.support.images import IMAGE, PROMPT


def test_sampling(ask):
    greedy = ask()
    hot = {"temperature": 5.0}
    assert ask(**hot, seed=1) == ask(**hot, seed=1)
    assert ask(**hot, seed=1) != ask(**hot, seed=2)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert ask(**hot, **narrow, seed=1) == greedy


def test_temperature_samples_the_softmax(untied_model):
    """The first token's frequencies over many seeds, against the probabilities."""
    model, processor = untied_model
    ids = processor.encode_chat([{"role": "user", "content": "a"}])
    expected = np.array(mx.softmax(model(mx.array([ids])).logits[0, -1] / 0.3))
    counts = np.zeros_like(expected)
    for seed in range(400):
        step = next(stream_generate(model, processor, "a", temperature=0.3, max_tokens=1, seed=seed))
        counts[step.token] += 1
    likely = expected > 0.02
    assert likely.sum() >= 3
    assert np.abs(counts / 400 - expected)[likely].max() < 0.08


def test_a_seed_depends_on_nothing_else(untied_model, ask):
    """Not on what was generated before, nor on what is generated in between."""
    model, processor = untied_model
    hot = {"temperature": 5.0, "seed": 1, "max_tokens": 12}
    expected = ask(**hot)
    ask(temperature=5.0)
    first, second = (stream_generate(model, processor, PROMPT, IMAGE, **hot) for _ in range(2))
    pairs = [(a.token, b.token) for a, b in zip(first, second)]
    assert pairs == [(token, token) for token in expected[: len(pairs)]]
    mx.random.seed(7)
    free = ask(temperature=5.0)
    mx.random.seed(7)
    assert ask(temperature=5.0) == free != ask(temperature=5.0)


def test_top_k_may_be_larger_than_the_vocabulary(ask):
    assert ask(temperature=5.0, seed=1, top_k=10**6) == ask(temperature=5.0, seed=1)


def test_logit_bias(ask):
    answer = ask()
    assert ask(logit_bias={7: 1e9}) == [7] * 12
    assert answer[0] not in ask(logit_bias={answer[0]: -1e9})
    with pytest.raises(UsageError, match="ids from 0 to 319, got 320"):
        ask(logit_bias={320: 1.0})


def test_log_probabilities(untied_model, ask):
    """Those of the whole context without a cache, after the processors."""
    model, processor = untied_model
    processor = dataclasses.replace(processor, eos_token_ids=frozenset())
    options = {"max_tokens": 4, "logit_bias": {7: 1.0}, "temperature": 2.0, "seed": 1}
    pieces = list(stream_generate(model, processor, PROMPT, IMAGE, logprobs=True, **options))
    ids = processor.encode_chat([{"role": "user", "content": f"<image>\n{PROMPT}"}])
    for i, piece in enumerate(pieces):
        context = ids + [before.token for before in pieces[:i]]
        logits = np.array(model(mx.array([context]), processor.preprocess(IMAGE)).logits[0, -1], np.float64)
        logits[7] += 1
        assert abs(piece.logprob - (logits[piece.token] - np.log(np.exp(logits).sum()))) < 1e-4
    assert [piece.token for piece in pieces] == ask(**options)
    assert next(stream_generate(model, processor, PROMPT, max_tokens=1)).logprob is None


def test_repetition_penalty_and_its_window(ask):
    plain = ask(max_tokens=30)
    assert len(set(plain)) < 30
    strong = ask(max_tokens=30, repetition_penalty=1e9, repetition_context_size=1000)
    assert len(set(strong)) == 30
    assert ask(max_tokens=30, repetition_penalty=1e9, repetition_context_size=1) != strong


def test_a_images_placeholder_is_no_token_to_penalise(untied_model, first_logits):
    """Apple's is -200, which would count from the vocabulary's end."""
    penalised = first_logits(repetition_penalty=2.0, repetition_context_size=1000)
    changed = np.flatnonzero(np.abs(penalised - first_logits()) > 1e-6)
    ids = untied_model[1].encode_chat([{"role": "user", "content": f"<image>\n{PROMPT}"}])
    assert set(changed) == {id for id in ids if id >= 0}


def test_logits_processors_see_the_tokens_and_change_the_logits(ask):
    seen = []

    def only_seven(tokens, logits):
        seen.append(tokens.size)
        return mx.where(mx.arange(logits.shape[-1]) == 7, logits, -mx.inf)

    assert ask(logits_processors=[only_seven], max_tokens=4) == [7] * 4
    assert seen == list(range(seen[0], seen[0] + 4))
