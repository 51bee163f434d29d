"""Some tokens only: logits or log-probabilities (rows, vocabulary) -> the same, the others at minus infinity.

Those that keep the likeliest give what mlx-lm's ``sample_utils`` gives, ties included; importing that takes longer than
an answer.
"""

from __future__ import annotations

import math

import mlx.core as mx


def keep_top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """The likeliest tokens, as few as have the probability ``top_p`` together (Holtzman et al., arXiv 1904.09751)."""
    ascending = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ascending)
    likelier = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)  # what all likelier ones have together
    total = likelier[..., :1] + probabilities[..., :1]
    least = mx.where(likelier < top_p * total, ascending, mx.inf).min(axis=-1, keepdims=True)
    return mx.where(logprobs < least, -mx.inf, logprobs)


def keep_min_p(logprobs: mx.array, min_p: float) -> mx.array:
    """Tokens of at least ``min_p`` times the likeliest one's probability (Nguyen et al., arXiv 2407.01082)."""
    least = logprobs.max(axis=-1, keepdims=True) + math.log(min_p)
    return mx.where(logprobs < least, -mx.inf, logprobs)


def keep_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """The ``top_k`` likeliest tokens, fewer than the vocabulary has."""
    others = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, others, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def keep_allowed(logits: mx.array, allowed: mx.array) -> mx.array:
    """The tokens whose bits are set: (rows, vocabulary / 32 rounded up) int32, lowest bit first."""
    bits = (allowed[..., None] >> mx.arange(32, dtype=mx.int32)) & 1
    return mx.where(bits.reshape(len(allowed), -1)[:, : logits.shape[-1]], logits, -mx.inf)
