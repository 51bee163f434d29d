"""Filters, biases and penalties give what mlx-lm's give, bit for bit."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import sample_utils

from mlx_fastvlm.generation.filters import keep_min_p, keep_top_k, keep_top_p
from mlx_fastvlm.generation.options import GenerationOptions
from mlx_fastvlm.generation.penalties import make_logits_processors
from mlx_fastvlm.generation.sampling import Sampler, choose


@pytest.fixture(scope="module", autouse=True)
def _uncompiled():
    """mlx-lm compiles its filters anew for each value, which takes a C++ compiler seconds on a CPU."""
    mx.disable_compile()
    yield
    mx.enable_compile()


SIZES = st.sampled_from([2, 5, 320, 2000])


def log_probabilities(seed, size, rows=3):
    """Spread widely, some of them equal, some ruled out already."""
    logits = mx.round(mx.random.normal((rows, size), key=mx.random.key(seed)) * 12) / 4
    logits = mx.where(mx.random.uniform(shape=logits.shape, key=mx.random.key(seed + 1)) < 0.1, -mx.inf, logits)
    logits[:, 0] = 0.0
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def equal(ours, theirs):
    assert ours.dtype == theirs.dtype
    return np.array_equal(*(np.array(x.astype(mx.float32)) for x in (ours, theirs)))  # NumPy has no bfloat16


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), size=SIZES, p=st.floats(1e-6, 1, exclude_max=True))
def test_top_p_and_min_p(seed, size, p):
    x = log_probabilities(seed, size)
    assert equal(keep_top_p(x, p), sample_utils.apply_top_p(x, p))
    assert equal(keep_min_p(x, p), sample_utils.apply_min_p(x, p))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), size=SIZES, k=st.integers(1, 400))
def test_top_k(seed, size, k):
    x = log_probabilities(seed, size)
    k = min(k, size - 1)
    assert equal(keep_top_k(x, k), sample_utils.apply_top_k(x, k))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    top_k=st.sampled_from([0, 1, 7, 50]),
)
def test_sampling_takes_a_token_that_mlx_lms_filters_leave(seed, temperature, top_p, min_p, top_k):
    """The largest of what they leave, in the same order, and of the noise that the sampler's key gives."""
    logits = log_probabilities(seed, 320, rows=1) + 5
    options = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "top_k": top_k}
    sampler = Sampler(GenerationOptions(**options), [], seed)
    left = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    left = sample_utils.apply_top_p(left, top_p) if top_p < 1 else left
    left = sample_utils.apply_min_p(left, min_p) if min_p > 0 else left
    left = sample_utils.apply_top_k(left, top_k) if top_k > 0 else left
    noise = mx.random.gumbel((1, 320), key=mx.array(sampler.key, mx.uint32))
    (pick,) = choose([sampler], logits)
    assert pick.token == mx.argmax(left / temperature + noise).item()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    said=st.lists(st.integers(0, 319), max_size=40),
    bias=st.none()
    | st.dictionaries(
        st.integers(0, 319), st.floats(-9, 9, width=32, allow_subnormal=False) | st.just(-np.inf), max_size=5
    ),
    penalty=st.none() | st.floats(0.5, 9),
    size=st.integers(1, 50),
    dtype=st.sampled_from([mx.float32, mx.bfloat16, mx.float16]),
)
def test_biases_and_penalties(seed, said, bias, penalty, size, dtype):
    logits, tokens = (mx.random.normal((1, 320), key=mx.random.key(seed)) * 9).astype(dtype), mx.array(said, mx.int32)
    options = {"logit_bias": bias, "repetition_penalty": penalty, "repetition_context_size": size}
    ours, theirs = logits, mx.array(logits)
    for process in make_logits_processors(GenerationOptions(**options)):
        ours = process(tokens, ours)
    for process in sample_utils.make_logits_processors(bias, penalty, size):
        theirs = process(tokens, theirs)
    assert equal(ours, theirs)


def test_the_callers_processors_come_last_and_unchanged():
    def own(tokens, logits):
        return logits

    options = GenerationOptions(logit_bias={1: 1.0}, repetition_penalty=2.0, logits_processors=[own])
    assert make_logits_processors(options)[2:] == [own]
    assert make_logits_processors(GenerationOptions()) == []


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_do_not_touch_each_other(rows):
    x = log_probabilities(3, 320, rows)
    for keep, value in ((keep_top_p, 0.8), (keep_min_p, 0.1), (keep_top_k, 9)):
        alone = mx.concatenate([keep(x[i : i + 1], value) for i in range(rows)])
        assert equal(keep(x, value), alone)
