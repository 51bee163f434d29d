"""Rotary positions (RoFormer, arXiv 2104.09864), plain and stretched to longer texts.

Every pair of a head's channels turns by its position times an inverse frequency. The stretched kinds change those, and
YaRN also the length of what is turned: "linear" divides positions, "dynamic" raises the base where a text is longer
than the model has seen (NTK), "yarn" (arXiv 2309.00071) and "llama3" stretch slow pairs and leave fast ones.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from ..config import TextConfig

_of_thread = threading.local()  # what a thread has not computed yet, no other one can


def rotate(x: mx.array, position_ids: mx.array, inverse: mx.array) -> mx.array:
    """Turn at arbitrary positions; angles are float32.

    Args:
        x: (batch, heads, length, head_dim), float.
        position_ids: (batch, length), integer.
        inverse: (head_dim / 2,), or (batch, 1, 1, head_dim / 2): turns a position, in radians.

    Returns:
        The shape and dtype of ``x``.
    """
    half = x.shape[-1] // 2
    angles = position_ids[:, None, :, None].astype(mx.float32) * inverse
    cos, sin = mx.cos(angles), mx.sin(angles)
    a, b = x[..., :half].astype(mx.float32), x[..., half:].astype(mx.float32)
    return mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Rotary:
    """A decoder's rotation, of queries and keys.

    With "dynamic", each row's base follows from that row's own last position; in transformers from the batch's.
    """

    def __init__(self, config: TextConfig) -> None:
        self._head_dim, self._base = config.head_dim, config.rope_theta
        self._rope = config.rope_scaling or {"rope_type": "default"}
        self._length = config.max_position_embeddings
        self._kind = self._rope["rope_type"]
        self._factor = _attention_factor(self._rope, self._length) if self._kind == "yarn" else 1.0
        self._settings = self._head_dim, self._base, self._length, repr(sorted(self._rope.items()))

    def __call__(self, x: mx.array, offset: Any = 0, position_ids: mx.array | None = None) -> mx.array:
        """Turn ``x``, (batch, heads, length, head_dim).

        Args:
            offset: the first position, a number or one for each row.
            position_ids: (batch, length); instead of counting on from ``offset``.
        """
        if self._factor != 1:
            x = x * self._factor
        if position_ids is None and self._kind == "default":
            return mx.fast.rope(x, self._head_dim, traditional=False, base=self._base, scale=1.0, offset=offset)
        if position_ids is None and self._kind != "dynamic":
            periods = 1 / self.inverse()
            return mx.fast.rope(
                x, self._head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=periods
            )
        if position_ids is None:
            first = offset[:, None] if isinstance(offset, mx.array) and offset.ndim else offset
            position_ids = mx.broadcast_to(mx.arange(x.shape[2]) + first, (x.shape[0], x.shape[2]))
        return rotate(x, position_ids, self.inverse(position_ids))

    def matrix(self, position: int) -> mx.array:
        """(head_dim, head_dim), float32: what a head is multiplied with to turn it to this position.

        A decoder's layers are asked one after the other, so the last one is kept for all that turn alike.
        """
        wanted = self._settings, position
        if getattr(_of_thread, "kept", None) != wanted:
            units = mx.eye(self._head_dim)[None, :, None]
            _of_thread.kept, _of_thread.matrix = wanted, self(units, position)[0, :, 0]
        matrix: mx.array = _of_thread.matrix
        return matrix

    def inverse(self, position_ids: mx.array | None = None) -> mx.array:
        """Turns a position of each pair, (head_dim / 2,); for "dynamic" (batch, 1, 1, head_dim / 2)."""
        half = self._head_dim // 2
        pairs = mx.arange(half, dtype=mx.float32) / half
        if self._kind == "dynamic":
            assert position_ids is not None  # they say how long a text is
            return self._dynamic(position_ids)[:, None, None, None] ** -pairs
        inverse = self._base**-pairs
        if self._kind == "linear":
            slower: mx.array = inverse / self._rope["factor"]
            return slower
        if self._kind == "yarn":
            return self._yarn(inverse)
        return self._llama3(inverse) if self._kind == "llama3" else inverse

    def _dynamic(self, position_ids: mx.array) -> mx.array:
        """Each row's base, which grows with its length beyond the model's own."""
        factor: float = self._rope["factor"]
        dim = self._head_dim
        length = mx.maximum(position_ids.max(axis=-1).astype(mx.float32) + 1, self._length)
        return self._base * (factor * length / self._length - (factor - 1)) ** (dim / (dim - 2))

    def _yarn(self, inverse: mx.array) -> mx.array:
        rope, half = self._rope, self._head_dim // 2
        factor, known = _yarn_factor(rope, self._length), rope["original_max_position_embeddings"]

        def pair(turns: float) -> float:
            """The pair that turns so often within the length that the model has seen."""
            return half * math.log(known / (turns * 2 * math.pi)) / math.log(self._base)

        low, high = pair(rope.get("beta_fast", 32)), pair(rope.get("beta_slow", 1))
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self._head_dim - 1)
        slow = mx.clip((mx.arange(half) - low) / (high - low or 0.001), 0, 1)
        return inverse / factor * slow + inverse * (1 - slow)

    def _llama3(self, inverse: mx.array) -> mx.array:
        rope = self._rope
        known: float = rope["original_max_position_embeddings"]
        low: float = rope["low_freq_factor"]
        high: float = rope["high_freq_factor"]
        factor: float = rope["factor"]
        turns = known * inverse / (2 * math.pi)
        fast = mx.clip((turns - low) / (high - low), 0, 1)
        return inverse / factor * (1 - fast) + inverse * fast


def _yarn_factor(rope: dict[str, Any], length: int) -> float:
    factor: float = rope.get("factor") or length / rope["original_max_position_embeddings"]
    return factor


def _attention_factor(rope: dict[str, Any], length: int) -> float:
    """What YaRN multiplies queries and keys with."""
    if "attention_factor" in rope:
        given: float = rope["attention_factor"]
        return given
    stretched = math.log(max(_yarn_factor(rope, length), 1))
    some: float | None = rope.get("mscale")
    every: float | None = rope.get("mscale_all_dim")
    if some and every:
        return (0.1 * some * stretched + 1) / (0.1 * every * stretched + 1)
    return 0.1 * stretched + 1
