"""What each token may look at: the tokens before it, without padding, and of those the last ones where a layer slides.

A mask is None (everything), "causal", or an array of bool, True where a query may look, that broadcasts to (batch,
heads, queries, keys). A window of n shows a token the last n up to itself, as transformers' ``sliding_attention``.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def plain_mask(length: int, cache: Any, window: int | None) -> mx.array | str | None:
    """The mask of a layer for ``length`` new tokens without padding, or with what a cache of several rows knows of it.

    Args:
        cache: what holds the tokens before them, or None.

    Raises:
        ValueError: for a window, and a cache that forgets tokens of its own accord.
    """
    if cache is not None:
        if window is not None:
            _check_keeps(cache, "The model's sliding windows")
        # With a window, some caches of mlx-lm's ask for an array.
        mask: mx.array | str | None
        mask = cache.make_mask(length, return_array=window is not None and length > 1, window_size=window)
        return mask
    if window is not None and length > window:
        return _looks(0, length, window)
    return "causal" if length > 1 else None


def check_caches(caches: list[Any], layers: int) -> None:
    """``ValueError`` unless there is a cache of keys and values for each layer.

    mlx-lm's other kinds are of other networks: the states of recurrent ones (``ArraysCache``), several caches of a
    layer (``CacheList``), attention in chunks (``ChunkedKVCache``).
    """
    if len(caches) != layers:
        raise ValueError(f"past_key_values must hold a cache for each of the {layers} layers, got {len(caches)}.")
    for cache in caches:
        if not (hasattr(cache, "update_and_fetch") and hasattr(cache, "make_mask")):
            raise ValueError(
                f"{type(cache).__name__} can't be in past_key_values, being no cache of a Qwen2 layer's keys and "
                "values; take make_cache(model), or mlx-lm's KVCache."
            )


def padded_mask(x: mx.array, attention_mask: mx.array, cache: Any, window: int | None) -> mx.array:
    """The mask of a layer where some tokens are padding.

    Args:
        x: (batch, length, hidden size), the new tokens.
        attention_mask: (batch, cached + length), 0 for padding.
        cache: what holds the tokens before them, or None.

    Returns:
        (batch, 1, length, cached + length).

    Raises:
        ValueError: where ``attention_mask`` has another shape, or the cache's keys have places of their own.
    """
    offset = 0 if cache is None else cache.offset
    if not isinstance(offset, int):
        raise ValueError(
            "attention_mask can't be combined with a cache whose rows have offsets of their own, such as mlx-lm's "
            "BatchKVCache, which knows the padding already; leave attention_mask out."
        )
    keys = offset + x.shape[1]
    if attention_mask.shape != (x.shape[0], keys):
        raise ValueError(
            f"attention_mask must have shape (batch, cached + new tokens) = {(x.shape[0], keys)}, "
            f"got {tuple(attention_mask.shape)}."
        )
    _check_keeps(cache, "attention_mask")
    # A padding query has nothing to see; letting it see itself keeps its row finite, and nobody reads that row.
    own = mx.arange(offset, keys)[:, None] == mx.arange(keys)
    return (_looks(offset, x.shape[1], window) & attention_mask[:, None, None, :].astype(mx.bool_)) | own


def _looks(offset: int, length: int, window: int | None) -> mx.array:
    """(length, offset + length): which keys the last ``length`` tokens look at."""
    query, key = mx.arange(offset, offset + length)[:, None], mx.arange(offset + length)
    return query >= key if window is None else (query >= key) & (query - key < window)


def _check_keeps(cache: Any, what: str) -> None:
    if cache is not None and getattr(cache, "max_size", None):
        raise ValueError(f"{what} can't be combined with a rotating cache, whose keys move; leave one out.")
