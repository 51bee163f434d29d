"""A bounded row in a crowd sees exactly what it keeps."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_fastvlm import Engine
from tests.cache.test_kv import reference, window
from tests.support.models import wide_model

ROWS = st.lists(st.tuples(st.integers(1, 40), st.none() | st.integers(1, 9)), min_size=2, max_size=5)


@settings(max_examples=20)
@given(rows=ROWS, step=st.sampled_from([7, 2048]))
def test_logprobs_are_those_of_full_attention_over_what_is_kept(rows, step):
    """Each row is a prompt's length and the places behind it, or None for all; the oracle has no cache and no crowd."""
    model, processor = wide_model()
    engine, asked = Engine(model, processor, prefill_step_size=step), []
    for length, places in rows:
        messages = [{"role": "user", "content": "x" * length}]
        ids = processor.encode_chat(messages)
        size = None if places is None else len(ids) + places
        options = {"max_tokens": 20, "logprobs": True, "max_kv_size": size, "temperature": 1.0, "seed": length}
        asked.append((ids, size, engine.submit(messages, **options)))
    while engine.step():
        pass
    for ids, size, answer in asked:
        responses = answer.ready()
        tokens = [*ids, *(response.token for response in responses)]
        logits = reference(model, mx.array([tokens]), window(len(tokens), size or len(tokens), len(ids)))
        normalised = logits - np.array(mx.logsumexp(mx.array(logits), axis=-1, keepdims=True))
        places = np.arange(len(ids) - 1, len(tokens) - 1)
        assert len(responses) == 20
        assert np.abs(normalised[places, tokens[len(ids) :]] - [r.logprob for r in responses]).max() < 1e-3
