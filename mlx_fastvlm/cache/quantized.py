"""The quantized KV cache that keeps everything: mlx-lm's, and what it holds without free places."""

from __future__ import annotations

import mlx.core as mx
import mlx_lm.models.cache


class QuantizedKVCache(mlx_lm.models.cache.QuantizedKVCache):  # type: ignore[misc]  # mlx_lm has no types
    """mlx-lm's cache of this name."""

    def in_order(self, x: mx.array) -> mx.array:
        """One of its arrays (batch, heads, places, ...) from the oldest token to the latest, without free places."""
        return x[..., : self.offset, :]
