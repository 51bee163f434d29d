"""What the KV caches keep, and that attention over it is exact."""

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import wide_model
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.base import scaled_dot_product_attention
from PIL import Image

import small
from mlx_fastvlm import PromptCache, load, load_prompt_cache, save_prompt_cache, stream_generate
from mlx_fastvlm.cache import make_cache
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.prompt_cache import StaleCache

PICTURE = Image.fromarray(small.odd_picture(70, 50))
OTHER = Image.new("RGB", (40, 60), "white")


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def reference(model, tokens, visible):
    """Logits of every position by full attention where each query sees what ``visible`` (queries, keys) says."""
    x = model.get_input_embeddings()(tokens)
    for layer in model.language_model.layers:
        x, _ = layer(x, visible)
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


@settings(max_examples=15, deadline=None)
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


@settings(max_examples=30, deadline=None)
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
        responses = stream_generate(*wide, prompt, PICTURE, max_tokens=20, logprobs=True, **options)
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


def run(model, processor, prompt, image=None, **options):
    """The last response and all tokens."""
    responses = list(stream_generate(model, processor, prompt, image, **{"max_tokens": 6, **options}))
    return responses[-1], [response.token for response in responses]


def test_a_prompt_cache_is_used_for_what_is_equal_and_nothing_else(wide):
    model, processor = wide
    cache = PromptCache()
    alone = run(model, processor, "What is this?", PICTURE)
    assert run(model, processor, "What is this?", PICTURE, prompt_cache=cache)[1] == alone[1]
    again, tokens = run(model, processor, "What is this?", PICTURE, prompt_cache=cache)
    assert tokens == alone[1]
    assert again.cached_tokens == again.prompt_tokens - 1
    other, tokens = run(model, processor, "What colour?", PICTURE, prompt_cache=cache)
    assert tokens == run(model, processor, "What colour?", PICTURE)[1]
    ids = processor.encode_chat([{"role": "user", "content": "<image>\nWhat "}])
    assert other.cached_tokens == len(ids) - len(processor.encode("<|im_end|>\n<|im_start|>assistant\n"))
    picture, tokens = run(model, processor, "What is this?", OTHER, prompt_cache=cache)
    assert tokens == run(model, processor, "What is this?", OTHER)[1]
    assert picture.cached_tokens == processor.encode_chat([{"role": "user", "content": "<image>"}]).index(
        processor.image_token_id
    )


def test_a_prompt_cache_encodes_no_picture_that_it_holds(wide, monkeypatch):
    model, processor = wide
    cache, calls = PromptCache(), []
    encode = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda self, x: calls.append(len(x)) or encode(self, x))
    run(model, processor, "a", [PICTURE, OTHER], prompt_cache=cache)
    run(model, processor, "b", [PICTURE, OTHER], prompt_cache=cache)
    assert calls == [1, 1]
    run(model, processor, "b", [PICTURE, PICTURE], prompt_cache=cache)
    assert calls == [1, 1, 1]


def test_an_overwritten_cache_refuses_another_prompt(wide):
    model, processor = wide
    ids = processor.encode_chat([{"role": "user", "content": "Hi"}])
    for bits in (None, 8):
        cache = PromptCache(max_kv_size=len(ids) + 4, kv_bits=bits)
        run(model, processor, "Hi", prompt_cache=cache, max_tokens=3)
        run(model, processor, "Ho", prompt_cache=cache, max_tokens=12)
        with pytest.raises(StaleCache, match="can't go back; reset"):
            stream_generate(model, processor, "Hi", prompt_cache=cache)
        cache.reset()
        assert run(model, processor, "Hi", prompt_cache=cache)[0].cached_tokens == 0


def test_a_prompt_cache_of_another_model(wide, small_model):
    cache = PromptCache()
    run(*wide, "Hi", prompt_cache=cache)
    with pytest.raises(ValueError, match="another model"):
        stream_generate(*small_model, "Hi", prompt_cache=cache)
    for option in ({"max_kv_size": 500}, {"kv_bits": 8}):
        with pytest.raises(UsageError, match="PromptCache itself"):
            stream_generate(*wide, "Hi", prompt_cache=cache, **option)


@pytest.mark.parametrize(
    "policy", [{}, {"kv_bits": 8}, {"max_kv_size": 120}, {"max_kv_size": 120, "kv_bits": 4}], ids=str
)
def test_saved_and_loaded(wide, tmp_path, policy):
    """Also after a bounded cache has begun to overwrite: the conversation goes on the same."""
    model, processor = wide
    file = tmp_path / "cache.safetensors"
    cache = PromptCache(**policy)
    run(model, processor, "What is this?", PICTURE, prompt_cache=cache, max_tokens=60)
    said = [{"role": "user", "content": "<image>\nWhat is this?"}]
    ids = processor.encode_chat(said)
    save_prompt_cache(file, cache)
    loaded = load_prompt_cache(file, model)
    assert loaded.tokens == cache.tokens
    assert loaded.offset == cache.offset
    assert (loaded.max_kv_size, loaded.kv_bits, loaded.kv_group_size) == (
        policy.get("max_kv_size"),
        policy.get("kv_bits"),
        64,
    )
    assert len(ids) < 120 < cache.offset
    more = mx.array([[1, 2, 3]])
    outputs = [np.array(model(more, past_key_values=c.layers).logits) for c in (cache, loaded)]
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-5
    single = [np.array(model(more[:, :1], past_key_values=c.layers).logits) for c in (cache, loaded)]
    assert np.abs(single[0] - single[1]).max() < 1e-5


def test_an_image_prefix_on_disk(wide, tmp_path):
    model, processor = wide
    file = tmp_path / "cache.safetensors"
    cache = PromptCache()
    run(model, processor, "What is this?", PICTURE, prompt_cache=cache)
    save_prompt_cache(file, cache)
    last, tokens = run(model, processor, "Why?", PICTURE, prompt_cache=load_prompt_cache(file, model))
    assert tokens == run(model, processor, "Why?", PICTURE)[1]
    assert last.cached_tokens >= processor.num_image_tokens()


def test_files_that_are_no_prompt_cache_of_this_model(wide, small_model, tmp_path):
    file = tmp_path / "cache.safetensors"
    with pytest.raises(ValueError, match="is empty"):
        save_prompt_cache(file, PromptCache())
    with pytest.raises(FileNotFoundError, match="no such prompt cache"):
        load_prompt_cache(file, wide[0])
    mx.save_safetensors(str(file), {"x": mx.zeros(1)})
    with pytest.raises(ValueError, match="not a prompt cache"):
        load_prompt_cache(file, wide[0])
    file.write_bytes(json.dumps({}).encode())
    with pytest.raises(ValueError, match="not a prompt cache"):
        load_prompt_cache(file, wide[0])
    cache = PromptCache()
    run(*wide, "Hi", prompt_cache=cache)
    save_prompt_cache(file, cache)
    with pytest.raises(ValueError, match="made with another model"):
        load_prompt_cache(file, small_model[0])


def test_a_model_with_one_other_number_is_another(checkpoint):
    from mlx_fastvlm.fingerprint import of_model

    model, _ = load(checkpoint("apple"))
    before = of_model(model)
    assert of_model(load(checkpoint("apple"))[0]) == before
    weight = model.language_model.layers[1].mlp.up_proj.weight
    weight[0, 0] += 1
    assert of_model(model) != before


def test_attention_weights_of_a_quantized_cache_are_refused(wide):
    model, _ = wide
    cache = make_cache(model, kv_bits=8)
    with pytest.raises(ValueError, match="leave out kv_bits"):
        model(mx.array([[1, 2]]), past_key_values=cache, output_attentions=True)
