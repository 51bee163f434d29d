"""KV-cache policies: what a generation keeps of its tokens, one cache for each decoder layer.

Caches other than the usual one are mlx-lm's or build on it, and mlx-lm is imported only for them: that takes longer
than answering a question about an image does on a Mac.
"""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..models.fastvlm import FastVlmModel
from .kv import KVCache


def make_cache(
    model: FastVlmModel,
    max_kv_size: int | None = None,
    keep: int = 0,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
) -> list[Any]:
    """One empty KV cache for each decoder layer.

    Args:
        max_kv_size: at most so many tokens are kept; from there on the oldest after the first ``keep`` are
            overwritten. None keeps all.
        keep: how many tokens at the beginning are never overwritten. Everything that the answer is about is there,
            the picture above all, so the generator protects the whole prompt.
        kv_bits: stores keys and values in 4 or 8 bits; None stores them as they are.
        kv_group_size: how many values share a scale then.

    Raises:
        UsageError: where ``max_kv_size`` leaves no room behind the protected tokens.
    """
    layers = model.language_model.layers
    if max_kv_size is None and kv_bits is None:
        return [KVCache() for _ in layers]
    if max_kv_size is None:
        from mlx_lm.models.cache import QuantizedKVCache

        return [QuantizedKVCache(kv_group_size, kv_bits) for _ in layers]
    check_capacity(max_kv_size, keep)
    from .bounded import BoundedKVCache, BoundedQuantizedKVCache

    if kv_bits is None:
        return [BoundedKVCache(max_kv_size, keep) for _ in layers]
    return [BoundedQuantizedKVCache(max_kv_size, keep, kv_group_size, kv_bits) for _ in layers]


def check_capacity(max_kv_size: int, keep: int):
    """``UsageError`` unless the protected tokens leave room for one more."""
    if max_kv_size <= keep:
        raise UsageError(
            f"max_kv_size is {max_kv_size}, but the prompt alone, which is kept, has {keep} tokens; "
            f"give at least {keep + 1}, or a smaller image_size."
        )
