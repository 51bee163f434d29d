"""KV caches of a crowd: each row has a slot in one array per layer, so rows join and leave without moving the others.

A slot's tokens lie at places of their own: an unbounded row writes its t-th token to place t; a bounded one, once it is
full, to ``keep + (t - keep) % (size - keep)``, over its oldest token behind the protected ones. Rotary positions are in
the keys already, so the order of places means nothing to attention, and rows of both kinds share a call.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

if TYPE_CHECKING:
    from .policy import CachePolicy


@dataclass
class Slot:
    """Where one row stands.

    Attributes:
        offset: tokens that it has seen.
        keep: how many of its first tokens are never overwritten.
        size: places that it has, or None for as many as it needs.
    """

    offset: int
    keep: int = 0
    size: int | None = None

    @property
    def place(self) -> int:
        """Where its next token goes."""
        if self.size is None or self.offset < self.size:
            return self.offset
        return self.keep + (self.offset - self.keep) % (self.size - self.keep)

    @property
    def length(self) -> int:
        """How many places are taken once the next token is there."""
        return self.offset + 1 if self.size is None else min(self.offset + 1, self.size)

    def placed(self, x: mx.array) -> mx.array:
        """Keys or values (1, heads, tokens, ...), from the oldest to the latest -> each at its place."""
        if self.size is None or self.offset <= self.size:
            return x
        window = self.size - self.keep
        latest, older = x[:, :, -window:], window - (self.offset - self.keep) % window
        return mx.concatenate([x[:, :, : self.keep], latest[:, :, older:], latest[:, :, :older]], axis=2)


class BatchCache:
    """The KV caches of all rows that decode together.

    Rows are known by their places, 0 to n - 1; a row that leaves is replaced by the last. A step is :meth:`begin`, the
    decoder with ``caches``, and :meth:`finish`. After an error between the two, nothing in here is of use any more.

    Args:
        layers: of the decoder.
        max_rows: the most that it will hold.
        policy: its bits and group size are what all rows have; their bounds are their own.

    Attributes:
        caches: what the decoder's layers are given, with the interface of a KV cache.
        slots: one for each row.
    """

    step = 256  # places are added so many at a time

    def __init__(self, layers: int, max_rows: int, policy: CachePolicy) -> None:
        self.max_rows = max_rows
        self.slots: list[Slot] = []
        self.offsets = self.places = self.rows = mx.array([], mx.int32)
        self.end = 0
        self.mask: mx.array | None = None
        self._window_masks: dict[int, mx.array] = {}
        if policy.kv_bits is None:
            self.caches = [BatchLayer(self) for _ in range(layers)]
        else:
            self.caches = [QuantizedBatchLayer(self, policy.kv_group_size, policy.kv_bits) for _ in range(layers)]

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def join(self, caches: list[Any]) -> int:
        """Take in a row with what its own caches hold, one for each layer; returns its place."""
        first, index = caches[0], len(self.slots)
        slot = Slot(first.offset, getattr(first, "keep", 0), getattr(first, "max_size", None))
        for layer, cache in zip(self.caches, caches):
            held = tree_map(cache.in_order, (cache.keys, cache.values))
            layer.fill(index, tree_map(slot.placed, held))
        self.slots.append(slot)
        return index

    def leave(self, index: int) -> None:
        """Free a row's slot; the last row, if it is another, has that place from now on."""
        last = self.slots.pop()
        if index == len(self.slots):
            return
        places = last.offset if last.size is None else min(last.offset, last.size)
        held = [layer.taken_out(len(self.slots), places) for layer in self.caches]
        mx.eval(held)  # before anything is written: while a view of an array is alive, MLX copies all of it for that
        for layer, tokens in zip(self.caches, held):
            layer.fill(index, tokens)
        self.slots[index] = last

    def begin(self) -> None:
        """Before a step in which every row gets one token."""
        lengths = [slot.length for slot in self.slots]
        self.end = max(lengths)
        numbers = [[slot.offset for slot in self.slots], [slot.place for slot in self.slots], lengths]
        self.offsets, self.places, taken = mx.array(numbers, mx.int32)
        self.rows = mx.arange(len(self.slots))
        self.mask, self._window_masks = None, {}
        if min(lengths) < self.end:
            self.mask = (mx.arange(self.end) < taken[:, None])[:, None, None]

    def window_mask(self, window: int) -> mx.array | None:
        """The mask where each row sees its last ``window`` tokens, of unbounded rows: their places are in order."""
        if self.end <= window:
            return self.mask
        if window not in self._window_masks:
            place, newest = mx.arange(self.end), self.offsets[:, None]
            self._window_masks[window] = ((place <= newest) & (newest - place < window))[:, None, None]
        return self._window_masks[window]

    def finish(self) -> None:
        """After that step."""
        for slot in self.slots:
            slot.offset += 1


class BatchLayer:
    """One decoder layer's keys and values, each (slots, key heads, places, head_dim); None while empty."""

    def __init__(self, batch: BatchCache) -> None:
        # A circle would keep the arrays of a crowd that has ended until Python looks for circles, which may be never.
        self._batch: BatchCache = weakref.proxy(batch)
        self._held: Any = None

    @property
    def offset(self) -> mx.array:
        """(rows,), the position of each row's next token."""
        return self._batch.offsets

    @property
    def nbytes(self) -> int:
        sizes: list[int] = []
        tree_map(lambda x: sizes.append(x.nbytes), self._held)
        return sum(sizes)

    def make_mask(self, length: int, window_size: int | None = None, return_array: bool = False) -> mx.array | None:
        """The mask for one new token a row: (rows, 1, 1, places) of bool, or None where all places are for all to see.

        Args:
            window_size: how many tokens each sees, itself included; None is all. No row may be bounded then.
        """
        return self._batch.mask if window_size is None else self._batch.window_mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Keys and values (rows, heads, 1, head_dim) -> those of all places that any row has taken."""
        return self._written((keys, values))

    def _written(self, new: Any) -> Any:
        batch = self._batch
        self._make_room(len(batch), batch.end, new)
        tree_map(self._write, self._held, new)
        return tree_map(lambda x: x[: len(batch), :, : batch.end], self._held)

    def _write(self, held: mx.array, new: mx.array) -> None:
        held[self._batch.rows, :, self._batch.places] = new[:, :, 0]

    def fill(self, index: int, tokens: Any) -> None:
        """Put a row's keys and values, each (1, heads, tokens, ...), into a slot's first places."""

        def write(held: mx.array, x: mx.array) -> None:
            held[index : index + 1, :, : x.shape[2]] = x

        lengths: list[int] = []
        tree_map(lambda x: lengths.append(x.shape[2]), tokens)
        self._make_room(index + 1, lengths[0], tokens)
        tree_map(write, self._held, tokens)

    def taken_out(self, index: int, places: int) -> Any:
        """A copy of what a slot holds in its first places."""
        return tree_map(lambda x: mx.contiguous(x[index : index + 1, :, :places]), self._held)

    def _make_room(self, rows: int, places: int, like: Any) -> None:
        self._held = tree_map(lambda x: x[:0, :, :0], like) if self._held is None else self._held
        self._held = tree_map(lambda held, x: self._larger(held, rows, places, x), self._held, like)

    def _larger(self, held: mx.array, rows: int, places: int, like: mx.array) -> mx.array:
        """The same with at least so many slots and places. Slots double, so that joins cost little in the long run."""
        slots, room = held.shape[0], held.shape[2]
        if rows <= slots and places <= room:
            return held
        slots = slots if rows <= slots else min(max(rows, 2 * slots), max(rows, self._batch.max_rows))
        room = room if places <= room else -(-places // BatchCache.step) * BatchCache.step
        larger = mx.zeros((slots, like.shape[1], room, like.shape[3]), like.dtype)
        if held.size:
            larger[: held.shape[0], :, : held.shape[2]] = held
        return larger


class QuantizedBatchLayer(BatchLayer):
    """The same with keys and values as triples (packed, scales, biases), as mlx-lm's quantized attention takes them."""

    def __init__(self, batch: BatchCache, group_size: int, bits: int) -> None:
        super().__init__(batch)
        self.group_size = group_size
        self.bits = bits

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        return self._written((self._quantized(keys), self._quantized(values)))

    def _quantized(self, x: mx.array) -> tuple[mx.array, ...]:
        return tuple(mx.quantize(x, group_size=self.group_size, bits=self.bits))
