"""KV caches of bounded size: the first ``keep`` tokens, the prompt with its images, and of the others the latest.

They stand on mlx-lm's ``RotatingKVCache``; tests/cache/test_mlx_lm_contract.py lists what they rely on.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import RotatingKVCache

Stored = tuple[tuple[mx.array, ...], ...]  # keys and values, each packed, scales, biases


class BoundedKVCache(RotatingKVCache):  # type: ignore[misc]  # mlx_lm has no types
    """mlx-lm's rotating cache, which overwrites the oldest of the tokens behind the protected ones.

    A token sees the first ``keep`` tokens and the last ``max_size - keep`` up to itself, no matter in what pieces the
    tokens came.
    """

    def make_mask(
        self, length: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """The mask for ``length`` new tokens: None, "causal", or (length, keys) of bool.

        mlx-lm's own slides its window over the protected tokens too, so that the later tokens of a follow-up question
        would lose sight of the image.
        """
        if length == 1:
            return None  # all that the cache holds is for the newest token to see
        offset = min(self.max_size - 1, self.offset)
        if offset + length <= self.max_size and not return_array:
            return "causal"
        query, key = mx.arange(offset, offset + length)[:, None], mx.arange(offset + length)
        seen: mx.array = (key <= query) & ((key < self.keep) | (query - key < self.max_size - self.keep))
        return seen

    def in_order(self, x: mx.array) -> mx.array:
        """One of its arrays (batch, heads, places, ...) from the oldest token to the latest, without free places."""
        if self._idx == x.shape[2]:
            return x
        if self._idx == self.offset:  # it has not come round yet
            return x[..., : self._idx, :]
        pieces = [x[..., : self.keep, :], x[..., self._idx :, :], x[..., self.keep : self._idx, :]]
        return mx.concatenate(pieces, axis=2)

    def restore(self, keys: Any, values: Any, offset: int) -> None:
        """Hold keys and values that :meth:`in_order` gave, of a cache that had seen ``offset`` tokens."""
        self.keys, self.values, self.offset = keys, values, offset
        self._idx = tree_flatten(keys)[0][1].shape[2]

    def _without(self, x: mx.array, count: int) -> mx.array:
        """An array without ``count`` tokens behind the protected ones."""
        return mx.concatenate([x[..., : self.keep, :], x[..., self.keep + count :, :]], axis=2) if count > 0 else x


class BoundedQuantizedKVCache(BoundedKVCache):
    """The same with keys and values in ``bits`` bits, every ``group_size`` of them with a scale and a bias.

    ``keys`` and ``values`` are triples (packed, scales, biases) of arrays (batch, heads, tokens, ...).
    """

    keys: Any
    values: Any

    def __init__(self, max_size: int, keep: int, group_size: int, bits: int) -> None:
        super().__init__(max_size, keep)
        self.group_size = group_size
        self.bits = bits

    @property
    def _room(self) -> int:
        """How many tokens the arrays have places for."""
        return 0 if self.keys is None else self.keys[0].shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Stored:
        """Keys and values (batch, heads, new tokens, head_dim) -> all that are kept, quantized."""
        new = tuple(tuple(mx.quantize(x, group_size=self.group_size, bits=self.bits)) for x in (keys, values))
        length = keys.shape[2]
        if self.keys is None and length > 1:
            self.keys, self.values = new
            self._idx = length
        elif length > 1:
            self._append(new)
        else:
            self._write(new)
        self.offset += length
        if self.offset < self._room:
            held: Stored = tree_map(lambda x: x[..., : self.offset, :], (self.keys, self.values))
            return held
        return self.keys, self.values

    def _append(self, new: Stored) -> None:
        """Several tokens: in temporal order behind the others, each with its whole window still there."""
        ordered = tree_map(self.in_order, (self.keys, self.values))
        overflow = ordered[0][0].shape[2] - self.max_size + 1
        self.keys, self.values = tree_map(
            lambda old, x: mx.concatenate([self._without(old, overflow), x], axis=2), ordered, new
        )
        self._idx = self._room

    def _write(self, new: Stored) -> None:
        """One token: over the oldest, or into free places, which grow by ``step`` at a time."""
        if self._idx == self._room < self.max_size:
            places = min(self.step, self.max_size - self._room)
            free = tree_map(lambda x: mx.zeros((*x.shape[:2], places, x.shape[3]), x.dtype), new)
            stored = (self.keys, self.values)
            grown = free if self.keys is None else tree_map(lambda a, b: mx.concatenate([a, b], axis=2), stored, free)
            self.keys, self.values = grown
        overflow = self._room - self.max_size
        if overflow > 0:
            self.keys, self.values = tree_map(lambda x: self._without(x, overflow), (self.keys, self.values))
            self._idx = self.max_size
        if self._idx == self.max_size:
            self._idx = self.keep
        for (_, place), (_, token) in zip(tree_flatten((self.keys, self.values)), tree_flatten(new)):
            place[..., self._idx : self._idx + 1, :] = token
        self._idx += 1

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for _, x in tree_flatten((self.keys, self.values))) if self.keys is not None else 0
