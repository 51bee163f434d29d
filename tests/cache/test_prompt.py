"""Prompt caches: what is equal is not computed again, and what is not is."""

import copy
import json

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_fastvlm import PromptCache, load_prompt_cache, save_prompt_cache, stream_generate
from mlx_fastvlm.cache.prompt import StaleCache
from mlx_fastvlm.errors import UsageError
from tests.support.images import IMAGE
from tests.support.models import wide_model

OTHER = Image.new("RGB", (40, 60), "white")


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def run(model, processor, prompt, image=None, **options):
    """The last response and all tokens."""
    responses = list(stream_generate(model, processor, prompt, image, **{"max_tokens": 6, **options}))
    return responses[-1], [response.token for response in responses]


def test_a_prompt_cache_is_used_for_what_is_equal_and_nothing_else(wide):
    model, processor = wide
    cache = PromptCache()
    alone = run(model, processor, "What is this?", IMAGE)
    assert run(model, processor, "What is this?", IMAGE, prompt_cache=cache)[1] == alone[1]
    again, tokens = run(model, processor, "What is this?", IMAGE, prompt_cache=cache)
    assert tokens == alone[1]
    assert again.cached_tokens == again.prompt_tokens - 1
    other, tokens = run(model, processor, "What colour?", IMAGE, prompt_cache=cache)
    assert tokens == run(model, processor, "What colour?", IMAGE)[1]
    ids = processor.encode_chat([{"role": "user", "content": "<image>\nWhat "}])
    assert other.cached_tokens == len(ids) - len(processor.encode("<|im_end|>\n<|im_start|>assistant\n"))
    image, tokens = run(model, processor, "What is this?", OTHER, prompt_cache=cache)
    assert tokens == run(model, processor, "What is this?", OTHER)[1]
    assert image.cached_tokens == processor.encode_chat([{"role": "user", "content": "<image>"}]).index(
        processor.image_token_id
    )


def test_a_prompt_cache_encodes_no_image_that_it_holds(wide, monkeypatch):
    model, processor = wide
    cache, calls = PromptCache(), []
    encode = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda self, x: calls.append(len(x)) or encode(self, x))
    run(model, processor, "a", [IMAGE, OTHER], prompt_cache=cache)
    run(model, processor, "b", [IMAGE, OTHER], prompt_cache=cache)
    assert calls == [1, 1]
    run(model, processor, "b", [IMAGE, IMAGE], prompt_cache=cache)
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
    run(model, processor, "What is this?", IMAGE, prompt_cache=cache, max_tokens=60)
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
    outputs = [np.array(model(more, past_key_values=c.caches).logits) for c in (cache, loaded)]
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-5
    single = [np.array(model(more[:, :1], past_key_values=c.caches).logits) for c in (cache, loaded)]
    assert np.abs(single[0] - single[1]).max() < 1e-5


def test_an_image_prefix_on_disk(wide, tmp_path):
    model, processor = wide
    file = tmp_path / "cache.safetensors"
    cache = PromptCache()
    run(model, processor, "What is this?", IMAGE, prompt_cache=cache)
    save_prompt_cache(file, cache)
    last, tokens = run(model, processor, "Why?", IMAGE, prompt_cache=load_prompt_cache(file, model))
    assert tokens == run(model, processor, "Why?", IMAGE)[1]
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


def test_a_conversation_can_be_forked(wide):
    """A copy holds the same, and neither sees what the other goes on with."""
    model, processor = wide
    cache = PromptCache()
    run(model, processor, "What is this?", IMAGE, prompt_cache=cache)
    fork = copy.deepcopy(cache)
    again, tokens = run(model, processor, "What is this?", IMAGE, prompt_cache=fork)
    assert again.cached_tokens == again.prompt_tokens - 1
    run(model, processor, "What colour?", IMAGE, prompt_cache=fork)
    kept, same = run(model, processor, "What is this?", IMAGE, prompt_cache=cache)
    assert kept.cached_tokens == kept.prompt_tokens - 1
    assert same == tokens
