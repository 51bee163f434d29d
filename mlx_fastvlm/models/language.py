"""The Qwen2 decoder (arXiv 2407.10671), as transformers' ``Qwen2Model`` computes it.

Caches are duck-typed: anything with mlx-lm's interface (``offset``, ``update_and_fetch``, ``make_mask``) will do, so
mlx-lm's own caches and this package's are interchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import TextConfig
from .ops import attention, linear, silu, tokenwise


def rotate(x: mx.array, position_ids: mx.array, base: float) -> mx.array:
    """Rotary position embedding (RoFormer, arXiv 2104.09864) for arbitrary positions; angles are float32.

    Args:
        x: (batch, heads, length, head_dim), float.
        position_ids: (batch, length), integer.
        base: ``rope_theta``.

    Returns:
        The shape and dtype of ``x``.
    """
    half = x.shape[-1] // 2
    inverse = base ** (-mx.arange(half, dtype=mx.float32) / half)
    angles = position_ids[:, None, :, None].astype(mx.float32) * inverse
    cos, sin = mx.cos(angles), mx.sin(angles)
    a, b = x[..., :half].astype(mx.float32), x[..., half:].astype(mx.float32)
    return mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; biases on q, k and v, none on the output.

    transformers' ``Qwen2Attention``.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        dim, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(dim, config.num_attention_heads * head_dim, bias=True)
        self.k_proj = nn.Linear(dim, config.num_key_value_heads * head_dim, bias=True)
        self.v_proj = nn.Linear(dim, config.num_key_value_heads * head_dim, bias=True)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, dim, bias=False)
        self._head_dim = head_dim
        self._rope_theta = config.rope_theta

    def _rope(self, x: mx.array, cache: Any, position_ids: mx.array | None) -> mx.array:
        if position_ids is not None:
            return rotate(x, position_ids, self._rope_theta)
        offset = cache.offset if cache is not None else 0
        return mx.fast.rope(x, self._head_dim, traditional=False, base=self._rope_theta, scale=1.0, offset=offset)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | str | None,
        cache: Any = None,
        position_ids: mx.array | None = None,
        eager: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        """Attend.

        Args:
            x: (batch, length, hidden size).
            mask: bool, broadcast to (batch, heads, length, keys), True where a query may look; or "causal"; or None.
            cache: keeps the keys and values, and gives back those of earlier tokens too.
            position_ids: (batch, length); by default they count on from the cache.
            eager: compute step by step, for the attention weights.

        Returns:
            (batch, length, hidden size), and with ``eager`` the weights, (batch, heads, length, keys).

        Raises:
            ValueError: for ``eager`` over a quantized cache, which has no plain keys.
        """
        if eager and hasattr(cache, "bits"):
            raise ValueError(
                "Attention weights can't be had from a quantized cache; leave out kv_bits, or take 'sdpa' attention "
                "without output_attentions."
            )
        batch, length, _ = x.shape
        q, k, v = (
            linear(x, proj).reshape(batch, length, -1, self._head_dim).transpose(0, 2, 1, 3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self._rope(q, cache, position_ids), self._rope(k, cache, position_ids)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        scale = self._head_dim**-0.5
        weights = None
        if eager:
            y, weights = eager_attention(q, k, v, scale, mask)
        elif hasattr(cache, "bits"):
            # A quantized cache comes from mlx-lm, so its attention for it is imported already.
            from mlx_lm.models.base import scaled_dot_product_attention

            y = scaled_dot_product_attention(q, k, v, cache=cache, scale=scale, mask=mask)
        else:
            y = attention(q, k, v, scale, mask)
        y = y.transpose(0, 2, 1, 3).reshape(batch, length, -1)
        return linear(y, self.o_proj), weights


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
    if isinstance(mask, str):  # "causal"
        queries, keys = scores.shape[-2:]
        mask = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return weights @ v, weights


class MLP(nn.Module):
    """The gated perceptron, SwiGLU (transformers' ``Qwen2MLP``)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., hidden size) -> the same shape."""
        return tokenwise(x, self._gated)

    def _gated(self, x: mx.array) -> mx.array:
        return linear(silu(linear(x, self.gate_proj)) * linear(x, self.up_proj), self.down_proj)


class DecoderLayer(nn.Module):
    """One pre-norm decoder layer (transformers' ``Qwen2DecoderLayer``); called like :class:`Attention`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, *args, **kwargs) -> tuple[mx.array, mx.array | None]:
        y, weights = self.self_attn(self.input_layernorm(x), *args, **kwargs)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), weights


@dataclass
class LanguageOutput:
    """What :class:`Qwen2Model` returns.

    Attributes:
        last_hidden_state: (batch, length, hidden size), after the final norm.
        hidden_states: the embeddings, then every layer's output, the last one after the final norm (as transformers
            orders them); each (batch, length, hidden size). None unless asked for.
        attentions: every layer's attention weights, (batch, heads, length, keys). None unless asked for.
    """

    last_hidden_state: mx.array
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


ATTENTIONS = ("sdpa", "eager")


class Qwen2Model(nn.Module):
    """The decoder without its head: embeddings in, hidden states out (transformers' ``Qwen2Model``).

    Attributes:
        attn_implementation: "sdpa", MLX's fused attention, or "eager", step by step. Attention weights exist only in
            the latter, so a call that asks for them takes it.
        gradient_checkpointing: while training, forget what the layers computed and compute it again for the gradients.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn_implementation = "sdpa"
        self.gradient_checkpointing = False

    def __call__(
        self,
        inputs_embeds: mx.array,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        cache: list[Any] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> LanguageOutput:
        """Run the decoder.

        Args:
            inputs_embeds: (batch, length, hidden size), float.
            attention_mask: (batch, length of the cache + length), 1 for tokens and 0 for padding; or None for no
                padding.
            position_ids: (batch, length); by default they count on from the cache.
            cache: one cache for each layer, filled in place.
            output_hidden_states, output_attentions: fill the fields of these names in the result.

        Raises:
            ValueError: where ``attention_mask`` has another shape, or meets a cache whose keys move.
        """
        eager = output_attentions or self.attn_implementation == "eager"
        checkpoint = self.gradient_checkpointing and self.training and not cache
        mask = self._mask(inputs_embeds, attention_mask, cache)
        x = inputs_embeds
        hidden_states: list[mx.array] = [x]
        attentions: list[Any] = []
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers)):
            run = nn.utils.checkpoint(layer) if checkpoint else layer
            x, weights = run(x, mask, layer_cache, position_ids, eager)
            hidden_states.append(x)
            attentions.append(weights)
        x = hidden_states[-1] = self.norm(x)
        return LanguageOutput(
            x,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )

    @staticmethod
    def _mask(x: mx.array, attention_mask: mx.array | None, cache: list[Any] | None) -> mx.array | str | None:
        """The causal mask, and the padding in it: True where a query may look."""
        length = x.shape[1]
        first = cache[0] if cache else None
        if attention_mask is None:
            if first is not None:
                return first.make_mask(length, return_array=False, window_size=None)
            return "causal" if length > 1 else None
        offset = first.offset if first is not None else 0
        keys = offset + length
        if attention_mask.shape != (x.shape[0], keys):
            raise ValueError(
                f"attention_mask must have shape (batch, cached + new tokens) = {(x.shape[0], keys)}, "
                f"got {tuple(attention_mask.shape)}."
            )
        if first is not None and getattr(first, "max_size", None):
            raise ValueError("attention_mask can't be combined with a rotating cache, whose keys move; leave one out.")
        causal = mx.arange(offset, keys)[:, None] >= mx.arange(keys)
        # A padding query has nothing to see; letting it see itself keeps its row finite, and nobody reads that row.
        own = mx.arange(offset, keys)[:, None] == mx.arange(keys)
        return (causal & attention_mask[:, None, None, :].astype(mx.bool_)) | own
