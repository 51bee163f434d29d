"""The decoder's own promises beyond parity."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache


def test_an_attention_mask_must_cover_cache_and_tokens(small_model):
    model, _ = small_model
    ids = mx.array([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"\(1, 3\), got \(1, 2\)"):
        model(ids, attention_mask=mx.ones((1, 2)))
    cache = [RotatingKVCache(max_size=8) for _ in model.language_model.layers]
    with pytest.raises(ValueError, match="rotating cache, whose keys move"):
        model(ids, attention_mask=mx.ones((1, 3)), past_key_values=cache)


def test_mlx_lms_own_caches_do(small_model):
    """Any cache with mlx-lm's interface: one that rotates gives what no cache gives, until it rotates."""
    model, _ = small_model
    ids = mx.array([[1, 2, 3, 4]])
    cache = [RotatingKVCache(max_size=8) for _ in model.language_model.layers]
    pieces = [model(part, past_key_values=cache).logits for part in (ids[:, :3], ids[:, 3:])]
    assert mx.allclose(mx.concatenate(pieces, axis=1), model(ids).logits, atol=1e-4)
