"""What the KV caches keep, and that attention over it is exact."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.base import scaled_dot_product_attention
from PIL import Image

from mlx_fastvlm import PromptCache, stream_generate
from mlx_fastvlm.cache.policy import make_cache
from mlx_fastvlm.errors import UsageError
from tests.support.images import IMAGE
from tests.support.models import wide_model

OTHER = Image.new("RGB", (40, 60), "white")


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def reference(model, tokens, visible):
    """Logits of every position by full attention where each query sees what ``visible`` (queries, keys) says."""
    x = model.get_input_embeddings()(tokens)
    for layer in model.language_model.layers:
        x = layer(x, visible)
    return np.array(model.logits(model.language_model.norm(x))[0])


def window(length, size, keep):
    query, key = mx.arange(length)[:, None], mx.arange(length)
    return (key <= query) & ((key < keep) | (query - key < size - keep))


def run_in_pieces(model, tokens, pieces, cache):
    logits, start = [], 0
    for piece in pieces:
        logits.append(np.array(model(tokens[:, start : start + piece], past_key_values=cache).logits[0]))
        start += piece
    return np.concatenate(logits)


PIECES = st.lists(st.integers(1, 7), min_size=3, max_size=14)


@settings(max_examples=15)
@given(first=st.integers(2, 9), pieces=PIECES, room=st.integers(1, 12), more=st.sampled_from([0, 0, 5, 20]))
def test_bounded_logits_equal_full_attention_over_what_is_kept(first, pieces, room, more):
    """In any pieces, for every token, through all layers."""
    model, _ = wide_model()
    pieces, size = [first + more, *pieces], first + room
    tokens = mx.array(np.random.RandomState(room).randint(0, 256, (1, sum(pieces))))
    cache = make_cache(model, size, keep=first)
    ours = run_in_pieces(model, tokens, pieces, cache)
    theirs = reference(model, tokens, window(sum(pieces), size, first))
    assert np.abs(ours - theirs).max() < 1e-4 * theirs.std()
    assert all(layer.offset == sum(pieces) for layer in cache)


@settings(max_examples=30)
@given(
    first=st.integers(1, 9),
    pieces=PIECES,
    room=st.integers(1, 12) | st.none(),
    more=st.sampled_from([0, 0, 5, 20]),
    bits=st.sampled_from([4, 8]),
)
def test_quantized_attention_equals_attention_over_rounded_keys_and_values(first, pieces, room, more, bits):
    """Bounded or not. One layer: through several, rounding would turn the last bit of a float into a visible step."""
    model, _ = wide_model()
    pieces = [first + more, *pieces]
    length, size = sum(pieces), None if room is None else first + room
    layer = make_cache(model, size, first, kv_bits=bits, kv_group_size=32)[0]
    queries, keys, values = (mx.random.normal((1, heads, length, 64), key=mx.random.key(heads)) for heads in (2, 1, 3))
    values = values[:, :1]
    ours, start = [], 0
    for piece in pieces:
        here = slice(start, start + piece)
        mask = layer.make_mask(piece, return_array=False, window_size=None)
        stored = layer.update_and_fetch(keys[:, :, here], values[:, :, here])
        ours.append(scaled_dot_product_attention(queries[:, :, here] + 0, *stored, layer, 0.125, mask))
        start += piece
    keys, values = (mx.dequantize(*mx.quantize(x, 32, bits), 32, bits) for x in (keys, values))
    scores = mx.where(window(length, size or length, first), queries @ keys.swapaxes(-1, -2) / 8, -mx.inf)
    theirs = mx.softmax(scores, axis=-1) @ values
    assert mx.abs(mx.concatenate(ours, axis=2) - theirs).max() < 1e-5


def test_the_window_is_not_everything():
    """The reference above would see it if the bound were ignored, or the prompt not protected."""
    model, _ = wide_model()
    tokens = mx.array(np.random.RandomState(0).randint(0, 256, (1, 40)))
    bounded = reference(model, tokens, window(40, 16, 10))
    for other in (window(40, 40, 10), window(40, 16, 0)):
        assert np.abs(bounded - reference(model, tokens, other))[-1].max() > 1e-2 * bounded.std()


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_bounded_cache_does_not_grow(wide, bits):
    model, _ = wide
    cache = make_cache(model, 300, keep=20, kv_bits=bits)
    step = mx.ones((1, 1, 1, 64))
    sizes = []
    for _ in range(700):
        keys, values = (mx.zeros((1, 1, 1, 64)), step)
        cache[0].update_and_fetch(keys, values)
        sizes.append(cache[0].nbytes)
    assert len(set(sizes)) == 2  # it grew once, not at every step
    assert sizes[299:] == sizes[-1:] * 401
    token = 2 * 64 * 4 if bits is None else 2 * (64 * bits // 8 + 2 * 4)
    assert sizes[-1] == 300 * token


def test_quantized_caches_take_their_bits(wide):
    model, processor = wide
    sizes = []
    for bits in (None, 8, 4):
        cache = PromptCache(kv_bits=bits)
        list(stream_generate(model, processor, "Hi", max_tokens=2, prompt_cache=cache))
        sizes.append(cache.nbytes)
    assert sizes[0] / sizes[1] == 64 * 4 / (64 + 8)
    assert sizes[0] / sizes[2] == 64 * 4 / (32 + 8)


def test_the_generators_cache_options(wide):
    """Each changes the answer's probabilities a little, and in its own way."""

    def probabilities(**options):
        prompt = "What is this, and where?"
        responses = stream_generate(*wide, prompt, IMAGE, max_tokens=20, logprobs=True, **options)
        return [response.logprob for response in responses]

    bounded = {"max_kv_size": len(wide[1].encode_chat([{"role": "user", "content": "<image>"}])) + 30}
    policies = [
        {},
        {"kv_bits": 8},
        {"kv_bits": 4},
        {"kv_bits": 4, "kv_group_size": 32},
        bounded,
        bounded | {"kv_bits": 8},
    ]
    found = [probabilities(**policy) for policy in policies]
    for i, one in enumerate(found):
        assert one == probabilities(**policies[i])
        assert all(one != other for other in found[:i])
    assert abs(found[0][0] - found[1][0]) < abs(found[0][0] - found[2][0]) < 1


def test_group_sizes_that_do_not_fit(wide, small_model):
    with pytest.raises(UsageError, match=r"head_dim 64, got 128; use 32 or 64\."):
        stream_generate(*wide, "Hi", kv_bits=8, kv_group_size=128)
    with pytest.raises(UsageError, match=r"head_dim 16, got 64; leave out kv_bits"):
        stream_generate(*small_model, "Hi", kv_bits=8)
    for bits in (0, 3, 16):
        with pytest.raises(UsageError, match=f"kv_bits must be 4 or 8, got {bits}"):
            stream_generate(*wide, "Hi", kv_bits=bits)


def test_attention_weights_of_a_quantized_cache_are_refused(wide):
    model, _ = wide
    cache = make_cache(model, kv_bits=8)
    with pytest.raises(ValueError, match="leave out kv_bits"):
        model(mx.array([[1, 2]]), past_key_values=cache, output_attentions=True)
