"""The usual KV cache, which keeps everything."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


class KVCache:
    """Keeps all keys and values; an equal of mlx-lm's class of this name, whose callers find all that they call.

    Attributes:
        keys, values: (batch, heads, places, head_dim), the first ``offset`` places taken; None while empty.
        offset: how many tokens it holds.
        step: places are added so many at a time.
    """

    step = 256

    def __init__(self) -> None:
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

    def in_order(self, x: mx.array) -> mx.array:
        """One of its arrays (batch, heads, places, ...) from the oldest token to the latest, without free places."""
        return x[..., : self.offset, :]

    def make_mask(
        self, length: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """The mask for ``length`` new tokens: None for one, "causal", or (length, keys) of bool.

        Args:
            window_size: how many tokens each sees, itself included; None is all. It needs an array as soon as there are
                more.
        """
        end = self.offset + length
        window = None if window_size is None or end <= window_size else window_size
        if window is None and (length == 1 or not return_array):  # every decoding step comes by here
            return None if length == 1 else "causal"
        query, key = mx.arange(self.offset, end)[:, None], mx.arange(end)
        return query >= key if window is None else (query >= key) & (query - key < window)

    def is_trimmable(self) -> bool:
        """Whether :meth:`trim` can forget the latest tokens: always."""
        return True

    def trim(self, count: int) -> int:
        """Forget the latest ``count`` tokens, or all; returns how many."""
        count = min(count, self.offset)
        self.offset -= count
        return count

    def size(self) -> int:
        """How many tokens it holds."""
        return self.offset

    def empty(self) -> bool:
        """Whether it has never held a token."""
        return self.keys is None

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None, int]:
        """(keys, values, offset), as mlx-lm saves and loads it; a cache of the same state goes on the same."""
        return self.keys, self.values, self.offset

    @state.setter
    def state(self, state: tuple[mx.array | None, mx.array | None, int]) -> None:
        self.keys, self.values, self.offset = state

    @property
    def meta_state(self) -> str:
        """What is to be saved beside ``state``, in mlx-lm's older releases and mlx-vlm: nothing."""
        return ""

    @meta_state.setter
    def meta_state(self, meta_state: str) -> None:
        if meta_state:
            raise ValueError(f"A KVCache has no meta_state, got {meta_state!r}; it belongs to another kind of cache.")

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Any:
        """mlx-lm's ``QuantizedKVCache`` of the same tokens, which shares nothing with this one."""
        from mlx_lm.models.cache import QuantizedKVCache  # noqa: PLC0415  slow, and only for this

        quantized: Any = QuantizedKVCache(group_size, bits)
        if self.keys is not None and self.values is not None:
            quantized.keys = mx.quantize(self.keys, group_size=group_size, bits=bits)
            quantized.values = mx.quantize(self.values, group_size=group_size, bits=bits)
        quantized.offset = self.offset
        return quantized

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes
