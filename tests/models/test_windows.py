"""Sliding windows as transformers computes them, whatever the tokens come in, with every cache that can hold them."""

import functools
import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import BatchKVCache, RotatingKVCache
from mlx_lm.models.cache import KVCache as TheirKVCache
from mlx_lm.models.cache import QuantizedKVCache as TheirQuantizedKVCache

from mlx_fastvlm import Engine, FastVlmConfig, PrefixCache, PromptCache, generate, make_cache
from mlx_fastvlm.config.text import read_text_config
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.language import Qwen2Model
from tests.support import small
from tests.support.differences import deviations
from tests.support.images import IMAGE
from tests.support.models import wide_model
from tests.support.reference import windows

RECORDED = json.loads(windows.FILE.read_text())
LIMIT = 1e-5
IDS, MASK, POSITIONS = (mx.array(x) for x in windows.inputs())
EVERY_CASE = pytest.mark.parametrize("case", windows.CASES)


@functools.cache
def decoder(case):
    model = Qwen2Model(read_text_config({**small.TEXT, **windows.CASES[case]}))
    model.load_weights([(name, mx.array(small.tensor(name, x.shape))) for name, x in tree_flatten(model.parameters())])
    return specialize(model.eval())


def run(model, start, end, **how):
    return model(model.embed_tokens(IDS[:, start:end]), **how).last_hidden_state


def difference(states, case, padded=False):
    padding = windows.PADDING if padded else 0
    recorded = RECORDED[case]["padded" if padded else "plain"]
    return deviations(np.array(windows.sample(states, padding)), np.array(recorded))


def test_the_cases_differ():
    """All that have a window from all that have none; those without one are the same."""
    first = {case: tuple(values["plain"]) for case, values in RECORDED.items()}
    same = {"no window", "a window of the whole", "no size", "not used"}
    assert len({first[case] for case in same}) == 1
    assert len(set(first.values())) == 1 + len(first) - len(same)


@EVERY_CASE
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_whole_prompt(case, attention):
    model = decoder(case)
    model.attn_implementation = attention
    assert difference(run(model, 0, windows.LENGTH), case) < LIMIT
    padded = run(model, 0, windows.LENGTH, attention_mask=MASK, position_ids=POSITIONS)
    assert difference(padded, case, padded=True) < LIMIT
    model.attn_implementation = "sdpa"


@EVERY_CASE
@pytest.mark.parametrize("kind", ["own", "theirs"])
@pytest.mark.parametrize("pieces", [(24,), (7, 10, 7), (16, *[1] * 8), (1,) * 24])
def test_pieces_over_a_cache(case, kind, pieces):
    model, states = decoder(case), []
    cache = [TheirKVCache() for _ in model.layers] if kind == "theirs" else make_caches(model)
    for padded in (False, True):
        states, start = [], 0
        for cached in cache:
            cached.trim(cached.offset)
        for length in pieces:
            end = start + length
            how = {"attention_mask": MASK[:, :end], "position_ids": POSITIONS[:, start:end]} if padded else {}
            states.append(run(model, start, end, cache=cache, **how))
            start = end
        assert difference(mx.concatenate(states, axis=1), case, padded) < LIMIT


def make_caches(model, **policy):
    class WithDecoder:
        language_model = model
        config = FastVlmConfig(small.VISION, {**small.TEXT})

    return make_cache(WithDecoder, **policy)


@EVERY_CASE
def test_left_padding_of_mlx_lms(case):
    """Its cache for batches knows the padding; ``attention_mask`` would say it twice."""
    model = decoder(case)
    cache = [BatchKVCache([0, windows.PADDING]) for _ in model.layers]
    states = [run(model, start, end, cache=cache) for start, end in ((0, 20), (20, 21), (21, 24))]
    assert difference(mx.concatenate(states, axis=1), case, padded=True) < LIMIT
    with pytest.raises(ValueError, match="BatchKVCache, which knows the padding already"):
        run(model, 0, 1, cache=cache, attention_mask=mx.ones((2, 25)))


@functools.cache
def sliding_model(window=12):
    """The model that rambles, with a window in its middle layer that images and questions are longer than."""
    model, processor = wide_model.__wrapped__()
    types = ["full_attention", "sliding_attention", "full_attention"]
    text = read_text_config(
        {**small.TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
        | {"use_sliding_window": True, "sliding_window": window, "layer_types": types}
    )
    sliding = type(model)(FastVlmConfig(small.VISION, text, image_token_id=-200, image_aspect_ratio="pad"))
    sliding.update(model.parameters())
    mx.eval(specialize(sliding.eval()).parameters())
    return sliding, processor


PROMPTS = ["What is this?", "Why?", "Count the stars, and say of each which colour it has.", "a"]


@pytest.mark.parametrize("policy", [{}, {"kv_bits": 8}], ids=str)
def test_rows_in_a_crowd_equal_rows_alone(policy):
    wide = sliding_model()
    alone = [generate(*wide, prompt, IMAGE, max_tokens=12, **policy) for prompt in PROMPTS]
    assert alone != [generate(*wide_model(), prompt, IMAGE, max_tokens=12, **policy) for prompt in PROMPTS]
    engine = Engine(*wide, prefix_cache=PrefixCache())
    answers = [engine.submit(prompt, IMAGE, max_tokens=12, **policy) for prompt in PROMPTS[:2]]
    for _ in range(5):
        engine.step()
    answers += [engine.submit(prompt, IMAGE, max_tokens=12, **policy) for prompt in PROMPTS[2:]]
    while engine.step():
        pass
    assert ["".join(response.text for response in answer) for answer in answers] == alone


def test_answers_go_by_a_plain_loop():
    model, processor = sliding_model()
    ids = processor(text="<image>\nWhat is this?", images=IMAGE, image_size=128)
    tokens = ids["input_ids"]
    for _ in range(6):
        logits = model(tokens, ids["pixel_values"]).logits[:, -1:]
        tokens = mx.concatenate([tokens, mx.argmax(logits, axis=-1)], axis=1)
    said = tokens[0, ids["input_ids"].shape[1] :].tolist()
    cache, found = make_cache(model), []
    step = model(**ids, past_key_values=cache)
    for _ in range(6):
        found.append(mx.argmax(step.logits[:, -1:], axis=-1))
        step = model(found[-1], past_key_values=cache)
    assert [token.item() for token in found] == said


def test_a_prompt_cache_goes_back():
    wide = sliding_model()
    cache = PromptCache()
    for prompt in (PROMPTS[2], PROMPTS[0]):
        assert generate(*wide, prompt, IMAGE, max_tokens=8, prompt_cache=cache) == generate(
            *wide, prompt, IMAGE, max_tokens=8
        )


def test_caches_that_forget_are_refused_by_name():
    model, processor = sliding_model()
    with pytest.raises(UsageError, match="max_kv_size 200 can't be combined with this model's sliding windows"):
        generate(model, processor, "a", IMAGE, max_kv_size=200)
    with pytest.raises(UsageError, match="sliding windows"):
        make_cache(model, max_kv_size=50, kv_bits=8)
    with pytest.raises(ValueError, match="sliding windows can't be combined with a rotating cache"):
        model(mx.array([[1, 2]]), past_key_values=[RotatingKVCache(9) for _ in range(3)])


def test_mlx_lms_quantized_cache():
    """Both have the same window; what is left is the quantization."""
    model, _ = sliding_model()
    ids = mx.array([[(7 * i) % 300 for i in range(40)]])
    results = []
    for cache in (make_cache(model, kv_bits=8), [TheirQuantizedKVCache(64, 8) for _ in range(3)]):
        pieces = [model(ids[:, i : i + n], past_key_values=cache).logits for i, n in ((0, 30), (30, 1), (31, 9))]
        results.append(mx.concatenate(pieces, axis=1))
    assert mx.array_equal(*results)
    exact, everything_seen = (mx.abs(results[0] - m(ids).logits).mean() for m in (model, wide_model()[0]))
    assert exact < everything_seen / 4
