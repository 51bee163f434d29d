"""KV-cache policies: how many tokens a cache keeps, in how many bits; and the caches, one for each decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, require, require_whole
from .kv import KVCache

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmModel

GROUP_SIZES = (32, 64, 128)  # that MLX can quantize in


@dataclass(frozen=True)
class CachePolicy:
    """What a KV cache keeps of the tokens.

    Caches other than the usual one build on mlx-lm's. Importing mlx-lm takes longer than a whole answer, so that
    happens when such a policy is made, before anybody waits for a first token; and never for the usual cache.

    Attributes:
        max_kv_size: at most so many tokens; from there on the oldest behind the protected ones are overwritten. None
            keeps all.
        kv_bits: 4 or 8 stores keys and values quantized; None stores them as they are.
        kv_group_size: how many values share a scale then: 32, 64 or 128, a divisor of ``head_dim``.

    Raises:
        UsageError: for a value that can't be.
    """

    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64

    def __post_init__(self) -> None:
        require_whole("max_kv_size", self.max_kv_size, optional=True)
        require_whole("kv_bits", self.kv_bits, optional=True)
        require_whole("kv_group_size", self.kv_group_size)
        require(self.max_kv_size is None or self.max_kv_size >= 1, "max_kv_size must be at least 1", self.max_kv_size)
        require(self.kv_bits in (None, 4, 8), "kv_bits must be 4 or 8", self.kv_bits)
        self._make_cache(keep=0)  # imports what it needs

    def check(self, model: FastVlmModel) -> None:
        """``UsageError`` that says what suits, unless the decoder's heads divide into groups of ``kv_group_size``.

        And for a bound where the decoder has windows of its own: a token sees its last ones there, not the first.
        """
        self._check_windows(model)
        if self.kv_bits is None:
            return
        head_dim, group_size = model.config.text_config.head_dim, self.kv_group_size
        fitting = [size for size in GROUP_SIZES if head_dim % size == 0]
        if group_size not in fitting:
            sizes = " or ".join(map(str, fitting))
            advice = f"use {sizes}" if fitting else "leave out kv_bits, since none of MLX's does"
            raise UsageError(f"kv_group_size must divide the model's head_dim {head_dim}, got {group_size}; {advice}.")

    def _check_windows(self, model: FastVlmModel) -> None:
        if self.max_kv_size is not None and any(model.config.text_config.windows):
            raise UsageError(
                f"max_kv_size {self.max_kv_size} can't be combined with this model's sliding windows, which would lose "
                "their order; leave it out."
            )

    def check_keep(self, keep: int) -> None:
        """``UsageError`` unless ``keep`` protected tokens leave room for one more."""
        if self.max_kv_size is not None and self.max_kv_size <= keep:
            raise UsageError(
                f"max_kv_size is {self.max_kv_size}, but the prompt alone, which is kept, has {keep} tokens; "
                f"give at least {keep + 1}, or a smaller image_size."
            )

    def make_caches(self, model: FastVlmModel, keep: int = 0) -> list[Any]:
        """One empty cache for each decoder layer, which never overwrites the first ``keep`` tokens."""
        self.check_keep(keep)
        self._check_windows(model)
        return [self._make_cache(keep) for _ in model.language_model.layers]

    def _make_cache(self, keep: int) -> Any:
        if self.max_kv_size is None and self.kv_bits is None:
            return KVCache()
        if self.max_kv_size is None:
            from .quantized import QuantizedKVCache  # noqa: PLC0415  imports mlx-lm, which is slow

            return QuantizedKVCache(self.kv_group_size, self.kv_bits)
        from .bounded import BoundedKVCache, BoundedQuantizedKVCache  # noqa: PLC0415  imports mlx-lm, which is slow

        if self.kv_bits is None:
            return BoundedKVCache(self.max_kv_size, keep)
        return BoundedQuantizedKVCache(self.max_kv_size, keep, self.kv_group_size, self.kv_bits)


def make_cache(
    model: FastVlmModel,
    max_kv_size: int | None = None,
    keep: int = 0,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
) -> list[Any]:
    """One empty KV cache for each decoder layer, for ``past_key_values``.

    Args:
        max_kv_size, kv_bits, kv_group_size: see :class:`CachePolicy`.
        keep: how many tokens at the beginning are never overwritten. Everything that the answer is about is there,
            the image above all, so the generator protects the whole prompt.

    Raises:
        UsageError: for a value that can't be, or where ``max_kv_size`` leaves no room behind the protected tokens.
    """
    return CachePolicy(max_kv_size, kv_bits, kv_group_size).make_caches(model, keep)
