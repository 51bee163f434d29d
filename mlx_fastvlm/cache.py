"""KV-cache policies: what a generation keeps of its tokens, one cache for each decoder layer.

The usual one, which keeps everything, is here. The others are mlx-lm's or build on it, and mlx-lm is imported only for
them: that takes longer than answering a question about a picture does on a Mac.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .errors import UsageError
from .models.fastvlm import FastVlmModel


class KVCache:
    """Keeps all keys and values; an equal of mlx-lm's class of this name.

    Attributes:
        keys, values: (batch, heads, places, head_dim), the first ``offset`` places taken; None while empty.
        offset: how many tokens it holds.
        step: places are added so many at a time.
    """

    step = 256

    def __init__(self):
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values (batch, heads, new tokens, head_dim) -> those of all tokens."""
        end = self.offset + keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = self._places(keys, end), self._places(values, end)
        elif end > self.keys.shape[2]:
            more = end - self.keys.shape[2]
            self.keys = mx.concatenate([self.keys, self._places(keys, more)], axis=2)
            self.values = mx.concatenate([self.values, self._places(values, more)], axis=2)
        self.keys[..., self.offset : end, :] = keys
        self.values[..., self.offset : end, :] = values
        self.offset = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def _places(self, like: mx.array, needed: int) -> mx.array:
        """Free places, at least as many as needed."""
        count = -(-needed // self.step) * self.step
        return mx.zeros((*like.shape[:2], count, like.shape[3]), like.dtype)

    def make_mask(self, length: int, window_size: int | None = None, return_array: bool = False):
        """The mask for ``length`` new tokens: None for one, "causal", or (length, keys) of bool."""
        if length == 1:
            return None
        if not return_array:
            return "causal"
        return mx.arange(self.offset, self.offset + length)[:, None] >= mx.arange(self.offset + length)

    def is_trimmable(self) -> bool:
        """Whether :meth:`trim` can forget the latest tokens: always."""
        return True

    def trim(self, count: int) -> int:
        """Forget the latest ``count`` tokens, or all; returns how many."""
        count = min(count, self.offset)
        self.offset -= count
        return count

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


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
    check_room(max_kv_size, keep)
    from .bounded_cache import BoundedKVCache, BoundedQuantizedKVCache

    if kv_bits is None:
        return [BoundedKVCache(max_kv_size, keep) for _ in layers]
    return [BoundedQuantizedKVCache(max_kv_size, keep, kv_group_size, kv_bits) for _ in layers]


def check_room(max_kv_size: int, keep: int):
    """``UsageError`` unless the protected tokens leave room for one more."""
    if max_kv_size <= keep:
        raise UsageError(
            f"max_kv_size is {max_kv_size}, but the prompt alone, which is kept, has {keep} tokens; "
            f"give at least {keep + 1}, or a smaller image_size."
        )
