"""What this package takes from mlx-lm's private parts, thing by thing, and that mlx-lm's callers take its caches.

If one of the first tests fails with a new release of mlx-lm, look at cache/bounded.py before the range in
pyproject.toml is widened.
"""

import inspect
import re
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_lm
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_fastvlm import FastVlmForConditionalGeneration
from mlx_fastvlm.cache.bounded import BoundedKVCache, BoundedQuantizedKVCache
from mlx_fastvlm.cache.kv import KVCache
from mlx_fastvlm.cache.policy import make_cache
from mlx_fastvlm.cache.quantized import QuantizedKVCache
from tests.support.models import wide_model
from tests.support.paths import ROOT


def keys(*tokens):
    """(1, 1, tokens, 32): each token's number in all its places."""
    return mx.repeat(mx.array(tokens, mx.float32)[None, None, :, None], 32, axis=-1)


def held(x):
    return [int(number) for number in x[0, 0, :, 0].tolist()]


def test_a_rotating_cache_is_made_of_its_size_and_what_it_keeps():
    assert list(inspect.signature(mlx_lm.RotatingKVCache).parameters) == ["max_size", "keep"]
    assert vars(mlx_lm.RotatingKVCache(9, 3)) == {
        "keep": 3,
        "keys": None,
        "values": None,
        "offset": 0,
        "max_size": 9,
        "_idx": 0,
    }
    assert mlx_lm.RotatingKVCache.step == 256


def test_idx_is_the_place_of_the_next_token():
    """Behind the latest while there is room, and behind the protected ones once it has come round."""
    cache = mlx_lm.RotatingKVCache(6, 2)
    cache.update_and_fetch(keys(0, 1, 2, 3), keys(0, 1, 2, 3))
    assert (cache._idx, cache.offset) == (4, 4)
    for token, place in ((4, 5), (5, 6), (6, 3), (7, 4), (8, 5), (9, 6), (10, 3)):
        cache.update_and_fetch(keys(token), keys(token))
        assert (cache._idx, cache.offset) == (place, token + 1)
    assert held(cache.keys) == [0, 1, 10, 7, 8, 9]


def test_several_tokens_are_appended_in_temporal_order():
    cache = mlx_lm.RotatingKVCache(6, 2)
    for token in range(9):
        cache.update_and_fetch(keys(token), keys(token))
    found, _ = cache.update_and_fetch(keys(9, 10), keys(9, 10))
    assert held(found) == [0, 1, 6, 7, 8, 9, 10][-7:]
    assert (cache._idx, cache.offset) == (7, 11)


def test_keep_max_size_offset_and_idx_are_read_anew_at_each_call():
    """The prompt cache sets ``keep``, and a bounded cache from a file its ``offset`` and ``_idx``."""
    cache = mlx_lm.RotatingKVCache(5, 0)
    cache.keys = cache.values = keys(0, 1, 2, 3, 4)
    cache.offset, cache._idx, cache.keep = 8, 5, 2
    cache.update_and_fetch(keys(8), keys(8))
    assert held(cache.keys) == [0, 1, 8, 3, 4]
    assert (cache.offset, cache._idx) == (9, 3)


def test_a_rotating_cache_can_go_back_until_it_is_full():
    cache = mlx_lm.RotatingKVCache(4, 1)
    cache.update_and_fetch(keys(0, 1, 2), keys(0, 1, 2))
    assert cache.is_trimmable()
    assert cache.trim(2) == 2
    assert (cache.offset, cache._idx) == (1, 1)
    cache.update_and_fetch(keys(5, 6, 7), keys(5, 6, 7))
    assert not cache.is_trimmable()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BoundedKVCache, mlx_lm.RotatingKVCache),
        (BoundedQuantizedKVCache, mlx_lm.RotatingKVCache),
        (QuantizedKVCache, mlx_lm.QuantizedKVCache),
    ],
)
def test_what_is_added_to_their_classes_has_names_of_its_own(ours, theirs):
    """Else mlx-lm's methods would call what is written here in place of theirs."""
    added = {name for kind in ours.__mro__ if kind.__module__.startswith("mlx_fastvlm.") for name in vars(kind)}
    replaced = {name for name in added & set(dir(theirs)) if not name.startswith("__")}
    assert replaced <= {"make_mask", "update_and_fetch", "nbytes"}
    assert {"group_size", "bits"}.isdisjoint(vars(mlx_lm.RotatingKVCache(9, 3)))


def test_a_mask_is_asked_for_in_the_same_way():
    theirs = inspect.signature(mlx_lm.RotatingKVCache.make_mask).parameters
    assert list(theirs)[2:] == ["window_size", "return_array"]
    assert [theirs[name].default for name in ("window_size", "return_array")] == [None, False]
    ours = inspect.signature(BoundedKVCache.make_mask).parameters
    assert len(ours) == len(theirs)
    assert list(ours)[2:] == list(theirs)[2:]


def test_a_quantized_cache_goes_on_from_what_is_put_into_it():
    """A prompt cache from a file has as many places as tokens, and sets ``keys``, ``values`` and ``offset``."""
    filled, given = mlx_lm.QuantizedKVCache(32, 8), QuantizedKVCache(32, 8)
    filled.update_and_fetch(keys(1, 2, 3), keys(1, 2, 3))
    given.keys, given.values = (tuple(x[..., :3, :] for x in parts) for parts in (filled.keys, filled.values))
    given.offset = 3
    for token in (4, 5):
        stored = [cache.update_and_fetch(keys(token), keys(token)) for cache in (filled, given)]
        for theirs, ours in zip(*(parts for both in stored for parts in both[:1])):
            assert mx.array_equal(theirs, ours)
    assert given.offset == filled.offset == 5


def test_the_version_lies_in_the_range_that_was_tested():
    project = re.search(r'"mlx-lm>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    least, below, here = ([int(part) for part in x.split(".")[:2]] for x in (*project.groups(), version("mlx-lm")))
    assert least <= here < below


@pytest.mark.parametrize("count", [2, 5, 8, 13])
def test_a_bounded_cache_in_order_and_restored(count):
    cache = BoundedKVCache(6, 2)
    for token in range(count):
        cache.update_and_fetch(keys(token), keys(token))
    ordered = cache.in_order(cache.keys)
    assert held(ordered) == [*range(min(count, 2)), *range(max(2, count - 4), count)]
    again = BoundedKVCache(6, 2)
    again.restore(ordered, cache.in_order(cache.values), count)
    for token in (count, count + 1):
        stored = [x.update_and_fetch(keys(token), keys(token))[0] for x in (cache, again)]
        assert sorted(held(stored[0])) == sorted(held(stored[1]))


def test_a_quantized_cache_is_made_of_group_size_and_bits():
    assert list(inspect.signature(mlx_lm.QuantizedKVCache).parameters) == ["group_size", "bits"]
    cache = mlx_lm.QuantizedKVCache(32, 8)
    cache.update_and_fetch(keys(1, 2), keys(1, 2))
    assert [x.shape[2] for x in cache.keys] == [256] * 3
    assert (cache.offset, cache.trim(1), cache.offset, cache.is_trimmable()) == (2, 1, 1, True)
    assert (cache.group_size, cache.bits, cache.empty()) == (32, 8, False)
    q = mx.ones((1, 1, 1, 32))
    stored = cache.update_and_fetch(keys(2), keys(2))
    attended = scaled_dot_product_attention(q, *stored, cache, scale=1.0, mask=None)
    assert abs(attended[0, 0, 0, 0].item() - 2) < 0.05


def test_a_batch_cache_is_made_of_its_padding_and_drops_rows():
    cache = mlx_lm.BatchKVCache([0, 1])
    cache.update_and_fetch(mx.concatenate([keys(1, 2), keys(0, 3)]), mx.concatenate([keys(1, 2), keys(0, 3)]))
    cache.filter(mx.array([1]))
    assert cache.update_and_fetch(keys(4), keys(4))[0].shape[0] == 1


# mlx-lm's functions, over this package's caches


@pytest.fixture
def filled():
    """Caches of a model that has read ten tokens."""
    model, _ = wide_model()
    caches = make_cache(model)
    model(mx.arange(10)[None], past_key_values=caches)
    return model, caches


def following(model, caches):
    return np.array(model(mx.array([[7, 8]]), past_key_values=caches).logits)


def test_mlx_lm_saves_and_loads_them(filled, tmp_path):
    model, caches = filled
    file = str(tmp_path / "cache.safetensors")
    mlx_lm.save_prompt_cache(file, caches, {"made": "here"})
    loaded, metadata = mlx_lm.load_prompt_cache(file, return_metadata=True)
    assert metadata == {"made": "here"}
    assert [cache.size() for cache in loaded] == [10] * len(caches)
    assert np.array_equal(following(model, loaded), following(model, caches))


def test_mlx_lm_trims_them(filled):
    model, caches = filled
    assert mlx_lm.can_trim_prompt_cache(caches)
    assert mlx_lm.trim_prompt_cache(caches, 4) == 4
    fresh = make_cache(model)
    model(mx.arange(6)[None], past_key_values=fresh)
    assert np.abs(following(model, caches) - following(model, fresh)).max() < 1e-5


def test_the_state_is_all_there_is(filled):
    model, caches = filled
    copies = [KVCache() for _ in caches]
    assert all(cache.empty() and cache.size() == 0 and cache.meta_state == "" for cache in copies)
    for cache, copied in zip(caches, copies):
        copied.state, copied.meta_state = cache.state, cache.meta_state
    assert not any(cache.empty() for cache in copies)
    mx.eval([cache.state for cache in copies])  # as mlx-lm does between the pieces of a prompt
    assert np.array_equal(following(model, copies), following(model, caches))
    with pytest.raises(ValueError, match="no meta_state"):
        copies[0].meta_state = ("4", "256")


def test_an_empty_cache_in_a_file(tmp_path):
    mlx_lm.save_prompt_cache(str(tmp_path / "x.safetensors"), [KVCache()])
    assert mlx_lm.load_prompt_cache(str(tmp_path / "x.safetensors"))[0].empty()
    assert KVCache().to_quantized().empty()


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.1), (4, 2)])
def test_to_quantized(filled, bits, bound):
    model, caches = filled
    quantized = [cache.to_quantized(group_size=32, bits=bits) for cache in caches]
    assert all(isinstance(cache, mlx_lm.QuantizedKVCache) and cache.offset == 10 for cache in quantized)
    exact, rounded = following(model, caches), following(model, quantized)
    assert 0 < np.abs(rounded - exact).max() < bound * exact.std()
    assert [cache.offset for cache in caches] == [12] * len(caches)


def test_it_equals_mlx_lms_own(filled):
    model, caches = filled
    theirs = [mlx_lm.KVCache() for _ in caches]
    model(mx.arange(10)[None], past_key_values=theirs)
    assert np.array_equal(following(model, caches), following(model, theirs))
    public = {name for name in dir(mlx_lm.KVCache) if not name.startswith("_")}
    assert public - set(dir(KVCache)) == {"from_state", "keys_and_values", "merge"}


# All kinds in past_key_values, or a refusal; mlx-lm's samplers, and its tuner's eyes


KEEPING = {
    "KVCache": lambda: mlx_lm.KVCache(),
    "ConcatenateKVCache": lambda: mlx_lm.ConcatenateKVCache(),
    "RotatingKVCache": lambda: mlx_lm.RotatingKVCache(64, 4),
    "BatchKVCache": lambda: mlx_lm.BatchKVCache([0]),
    "BatchRotatingKVCache": lambda: mlx_lm.BatchRotatingKVCache(64, [0]),
    "QuantizedKVCache": lambda: mlx_lm.QuantizedKVCache(64, 8),
}
OTHERS = {
    "ArraysCache": lambda: mlx_lm.ArraysCache(2),
    "CacheList": lambda: mlx_lm.CacheList(mlx_lm.KVCache()),
    "ChunkedKVCache": lambda: mlx_lm.ChunkedKVCache(64),
}


def test_these_are_all_kinds_there_are():
    caches = {
        name
        for name, kind in vars(mlx_lm).items()
        if inspect.isclass(kind) and issubclass(kind, mlx_lm._BaseCache) and not name.startswith("_")
    }
    assert caches == KEEPING.keys() | OTHERS.keys()


@pytest.mark.parametrize("kind", KEEPING)
def test_a_prompt_and_steps_over_every_kind(kind):
    model, _ = wide_model()
    ids = mx.array([[5, 9, 12, 7, 22, 31, 8, 40]])
    whole, caches = np.array(model(ids).logits), [KEEPING[kind]() for _ in model.layers]
    pieces = [model(ids[:, a:b], past_key_values=caches).logits for a, b in ((0, 5), (5, 6), (6, 8))]
    far = np.abs(np.concatenate(pieces, axis=1) - whole).max() / whole.std()
    assert far < (0.5 if kind == "QuantizedKVCache" else 1e-4)


@pytest.mark.parametrize("kind", OTHERS)
def test_caches_of_other_networks_are_refused_by_name(kind):
    model, _ = wide_model()
    with pytest.raises(ValueError, match=f"^{kind} can't be in past_key_values.*take make_cache"):
        model(mx.array([[5]]), past_key_values=[OTHERS[kind]() for _ in model.layers])


def test_a_cache_for_each_layer():
    """Fewer would leave out layers in silence."""
    model, _ = wide_model()
    with pytest.raises(ValueError, match="a cache for each of the 3 layers, got 2"):
        model(mx.array([[5]]), past_key_values=make_cache(model)[:2])


def test_mlx_lm_finds_the_layers():
    model, _ = wide_model()
    assert [type(cache) for cache in mlx_lm.make_prompt_cache(model)] == [mlx_lm.KVCache] * 3
    assert len(mlx_lm.make_prompt_cache(model, max_kv_size=8)) == 3


def test_mlx_lms_sampler_and_processors_in_a_plain_loop():
    """Greedy by its sampler, and a bias by its processors, are ``model.generate``'s with the same processors."""
    model, _ = wide_model()
    processors = make_logits_processors({7: 3.0}, repetition_penalty=1.3, repetition_context_size=100)
    sampler, ids = make_sampler(0.0), mx.array([[5, 9, 12]])
    caches, tokens = make_cache(model), ids[0]
    step = ids
    for _ in range(6):
        logits = model(step, past_key_values=caches).logits[:, -1]
        for processor in processors:
            logits = processor(tokens, logits)
        step = sampler(logits - mx.logsumexp(logits, keepdims=True))[:, None].astype(mx.int32)
        tokens = mx.concatenate([tokens, step[0]])
    adapted = [lambda ids, logits, one=one: one(ids[0], logits) for one in processors]
    expected = model.generate(ids, max_new_tokens=6, logits_processor=adapted)
    assert tokens.tolist() == expected[0].tolist()


def test_mlx_lms_tuner_and_mlxs_quantize():
    """QLoRA by their own words: quantize, put adapters in, nothing has changed yet, and only they are trained."""
    config = wide_model()[0].config
    mx.random.seed(1)
    model = FastVlmForConditionalGeneration(config)
    nn.quantize(model.language_model, group_size=32, bits=4)
    before = np.array(model(mx.array([[5, 9]])).logits)
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]})
    adapted = [name for name, layer in model.named_modules() if isinstance(layer, LoRALinear)]
    assert sorted(adapted) == [f"language_model.layers.{i}.self_attn.q_proj" for i in (1, 2)]
    assert np.array_equal(model(mx.array([[5, 9]])).logits, before)
    assert {name.rpartition(".")[2] for name, _ in tree_flatten(model.trainable_parameters())} == {"lora_a", "lora_b"}
    model.layers[2].self_attn.q_proj.lora_b += 0.3
    changed = np.array(model(mx.array([[5, 9]])).logits)
    assert not np.allclose(changed, before)
