"""KV-cache policies: which of mlx-lm's caches a generation runs on."""

from __future__ import annotations

from typing import Any

from .model import FastVlmModel


def make_cache(model: FastVlmModel, max_kv_size: int | None = None, keep: int = 0) -> list[Any]:
    """One empty KV cache for each decoder layer.

    Args:
        max_kv_size: at most so many tokens are kept; from there on the oldest ones after the first ``keep`` are
            overwritten (mlx-lm's ``RotatingKVCache``). None keeps all.
        keep: how many tokens at the beginning are never overwritten. Everything that the answer is about is there,
            the picture above all, so the generator protects the whole prompt.

    Raises:
        ValueError: where ``max_kv_size`` leaves no room behind the protected tokens.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    layers = len(model.language_model.layers)
    if max_kv_size is None:
        return [KVCache() for _ in range(layers)]
    if max_kv_size <= keep:
        raise ValueError(
            f"max_kv_size is {max_kv_size}, but the prompt alone, which is kept, has {keep} tokens; "
            f"give at least {keep + 1}, or a smaller image_size."
        )
    return [RotatingKVCache(max_kv_size, keep=keep) for _ in range(layers)]
