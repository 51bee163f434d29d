"""Attention, in the three ways that the decoder needs it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

# What one quantized array is made of: packed numbers, scales and biases, each (batch, heads, tokens, ...).
Packed = tuple[mx.array, mx.array, mx.array]


def causal_mask(queries: int, keys: int) -> mx.array:
    """(queries, keys), bool: True where a query may look, the queries being the last of the keys."""
    return mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)


def cached_attention(q: mx.array, k: Any, v: Any, scale: float, mask: mx.array | str | None, cache: Any) -> mx.array:
    """Scaled dot-product attention over what a cache gave back, or over the keys and values themselves.

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, heads or a divisor of it, keys, head_dim); the parts of each where the cache is quantized, which
            is one that has ``bits``.
        mask: bool, broadcast to (batch, heads, queries, keys), True where a query may look; or "causal"; or None.

    Returns:
        The shape of ``q``.
    """
    if hasattr(cache, "bits"):
        return quantized_attention(q, k, v, scale, mask, cache.group_size, cache.bits)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def quantized_attention(
    q: mx.array, k: Packed, v: Packed, scale: float, mask: mx.array | str | None, group_size: int, bits: int
) -> mx.array:
    """Attention over quantized keys and values, which are never unpacked as a whole.

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: as ``mx.quantize`` returns them for (batch, heads or a divisor of it, keys, head_dim).
        mask: see :func:`cached_attention`.

    Returns:
        The shape of ``q``.
    """
    batch, heads, queries, head_dim = q.shape
    kv_heads = k[0].shape[1]
    # Query heads that share a key head, beside one another: (batch, key heads, shared, queries, head_dim).
    q = (q * scale).reshape(batch, kv_heads, heads // kv_heads, queries, head_dim)
    keys, values = ([part[:, :, None] for part in packed] for packed in (k, v))
    how: Any = {"group_size": group_size, "bits": bits}
    scores = mx.quantized_matmul(q, keys[0], keys[1], keys[2], transpose=True, **how)
    if isinstance(mask, str):
        mask = causal_mask(queries, scores.shape[-1])
    if mask is not None:
        if mask.ndim > 3:  # with an axis of heads, of which there are two here
            mask = mask[:, :, None]
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights = mx.softmax(scores, axis=-1, precise=True)
    y = mx.quantized_matmul(weights, values[0], values[1], values[2], transpose=False, **how)
    return y.reshape(batch, heads, queries, head_dim)


def eager_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None
) -> tuple[mx.array, mx.array]:
    """Attention step by step, for its weights (transformers' ``eager_attention_forward``).

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, key/value heads, keys, head_dim).
        mask: bool, broadcast to (batch, heads, queries, keys), True where a query may look; or "causal"; or None.

    Returns:
        The shape of ``q``, and the weights, (batch, heads, queries, keys), whose rows sum to one.
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = mx.repeat(k, repeats, axis=1), mx.repeat(v, repeats, axis=1)
    scores = (q * scale) @ k.transpose(0, 1, 3, 2)
    if isinstance(mask, str):
        mask = causal_mask(*scores.shape[-2:])
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return weights @ v, weights
