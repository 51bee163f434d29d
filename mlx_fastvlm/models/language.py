"""The Qwen2 decoder (arXiv 2407.10671), as transformers' ``Qwen2Model`` computes it.

Caches are duck-typed: anything with mlx-lm's interface (``offset``, ``update_and_fetch``, ``make_mask``) will do, so
mlx-lm's own caches and this package's are interchangeable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS, SiLU, silu
from .masks import check_caches, padded_mask, plain_mask
from .ops import cached_attention, eager_attention
from .rotary import Rotary
from .threads import end_streams_with_thread

if TYPE_CHECKING:
    from ..config import TextConfig


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; biases on q, k and v, none on the output.

    transformers' ``Qwen2Attention``.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(dim, config.num_attention_heads * head_dim, bias=True)
        self.k_proj = nn.Linear(dim, config.num_key_value_heads * head_dim, bias=True)
        self.v_proj = nn.Linear(dim, config.num_key_value_heads * head_dim, bias=True)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, dim, bias=False)
        self._head_dim = head_dim
        self._scale = config.head_dim**-0.5
        self._rotary = Rotary(config)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None, position_ids: mx.array | None = None
    ) -> mx.array:
        """Attend.

        Args:
            x: (batch, length, hidden size).
            mask: bool, broadcast to (batch, heads, length, keys), True where a query may look; or "causal"; or None.
            cache: keeps the keys and values, and gives back those of earlier tokens too.
            position_ids: (batch, length); by default they count on from the cache.

        Returns:
            The shape of ``x``.
        """
        batch, length, _ = x.shape
        q, k, v = self.heads(x, cache, position_ids)
        y = self.attend(q, k, v, mask, cache)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def eager(
        self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None, position_ids: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """The same step by step, and the attention weights, (batch, heads, length, keys).

        Raises:
            ValueError: for a quantized cache, which has no plain keys.
        """
        if hasattr(cache, "bits"):
            raise ValueError(
                "Attention weights can't be had from a quantized cache; leave out kv_bits, or take 'sdpa' attention "
                "without output_attentions."
            )
        batch, length, _ = x.shape
        q, k, v = self.heads(x, cache, position_ids)
        y, weights = eager_attention(q, k, v, self._scale, mask)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1)), weights

    def heads(self, x: mx.array, cache: Any, position_ids: mx.array | None) -> tuple[mx.array, Any, Any]:
        """Rotated queries and keys, and values: (batch, heads, length or keys, head_dim), or what a cache gives."""
        batch, length, _ = x.shape
        q = self.q_proj(x).reshape(batch, length, -1, self._head_dim).transpose(0, 2, 1, 3)
        k = self.k_proj(x).reshape(batch, length, -1, self._head_dim).transpose(0, 2, 1, 3)
        v = self.v_proj(x).reshape(batch, length, -1, self._head_dim).transpose(0, 2, 1, 3)
        offset = 0 if cache is None else cache.offset
        q, k = self.turn(q, offset, position_ids), self.turn(k, offset, position_ids)
        return (q, k, v) if cache is None else (q, *cache.update_and_fetch(k, v))

    def turn(self, x: mx.array, offset: Any, position_ids: mx.array | None) -> mx.array:
        """Queries or keys, turned to their positions; see :class:`Rotary`."""
        return self._rotary(x, offset, position_ids)

    def attend(self, q: mx.array, k: Any, v: Any, mask: mx.array | str | None, cache: Any) -> mx.array:
        """Scaled dot-product attention over all keys; see :func:`cached_attention`."""
        return cached_attention(q, k, v, self._scale, mask, cache)


class MLP(nn.Module):
    """The gated perceptron, SwiGLU (transformers' ``Qwen2MLP``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., hidden size) -> the same shape."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class ActivatedMLP(MLP):
    """The same with another activation than SiLU (``hidden_act``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.act = ACTIVATIONS[config.hidden_act]()

    def __call__(self, x: mx.array) -> mx.array:
        """(..., hidden size) -> the same shape."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """One pre-norm decoder layer (transformers' ``Qwen2DecoderLayer``); called like :class:`Attention`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = (MLP if ACTIVATIONS[config.hidden_act] is SiLU else ActivatedMLP)(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None, position_ids: mx.array | None = None
    ) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache, position_ids)
        return x + self.mlp(self.post_attention_layernorm(x))

    def eager(self, x: mx.array, *args: Any) -> tuple[mx.array, mx.array]:
        """The same, and the attention weights; see :meth:`Attention.eager`."""
        y, weights = self.self_attn.eager(self.input_layernorm(x), *args)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), weights


@dataclass
class LanguageOutput:
    """What :class:`Qwen2Model` returns.

    Attributes:
        last_hidden_state: (batch, length, hidden size), after the final norm.
        hidden_states: the embeddings, then every layer's output, the last one after the final norm (as transformers
            orders them); each (batch, length, hidden size), or None where only others were asked for. None unless asked
            for.
        attentions: every layer's attention weights, (batch, heads, length, keys). None unless asked for.
    """

    last_hidden_state: mx.array
    hidden_states: tuple[mx.array | None, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


ATTENTIONS = ("sdpa", "eager")


class Qwen2Model(nn.Module):
    """The decoder without its head: embeddings in, hidden states out (transformers' ``Qwen2Model``).

    Attributes:
        attn_implementation: "sdpa", MLX's fused attention, or "eager", step by step. Attention weights exist only in
            the latter, so a call that asks for them takes it.
        gradient_checkpointing: while training, forget what the layers computed and compute it again for the gradients.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._windows = config.windows
        self.attn_implementation = "sdpa"
        self.gradient_checkpointing = False

    def __call__(
        self,
        inputs_embeds: mx.array,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        cache: list[Any] | None = None,
        output_hidden_states: bool | int | Sequence[int] = False,
        output_attentions: bool = False,
    ) -> LanguageOutput:
        """Run the decoder.

        Args:
            inputs_embeds: (batch, length, hidden size), float; computed in the norms' dtype.
            attention_mask: (batch, length of the cache + length), 1 for tokens and 0 for padding; or None for no
                padding.
            position_ids: (batch, length); by default they count on from the cache.
            cache: one cache for each layer, filled in place.
            output_hidden_states, output_attentions: fill the fields of these names in the result. Indices instead of
                True keep these hidden states only, and None in the others' places (as transformers: negative ones count
                from the end, those beyond it mean nothing, and the number 0 is False).

        Raises:
            ValueError: where ``attention_mask`` has another shape, or meets a cache that it can't be combined with;
                where layers have windows, and the cache forgets; or for caches that are none of a decoder's layers.
        """
        end_streams_with_thread()
        # One type throughout: mxfp4 unpacks embeddings to bfloat16, and in a float16 model all would become float32.
        inputs_embeds = inputs_embeds.astype(self.norm.weight.dtype)
        if cache:
            check_caches(cache, len(self.layers))
        masks = self._masks(inputs_embeds, attention_mask, cache)
        caches = cache or [None] * len(self.layers)
        eager = output_attentions or self.attn_implementation == "eager"
        checkpoint = self.gradient_checkpointing and self.training and not cache
        if eager or checkpoint or output_hidden_states:
            hidden_states, attentions = self._states(inputs_embeds, masks, caches, position_ids, eager, checkpoint)
            return LanguageOutput(
                hidden_states[-1],
                _selected(hidden_states, output_hidden_states) if output_hidden_states else None,
                tuple(attentions) if output_attentions else None,
            )
        x = inputs_embeds
        for layer, mask, layer_cache in zip(self.layers, masks, caches):
            x = layer(x, mask, layer_cache, position_ids)
        return LanguageOutput(self.norm(x))

    def _states(
        self,
        x: mx.array,
        masks: list[mx.array | str | None],
        caches: list[Any],
        position_ids: mx.array | None,
        eager: bool,
        checkpoint: bool,
    ) -> tuple[list[mx.array], list[mx.array]]:
        """All hidden states, as :class:`LanguageOutput` orders them, and with ``eager`` all attention weights."""
        hidden_states, attentions = [x], []
        for layer, mask, cache in zip(self.layers, masks, caches):
            run = layer.eager if eager else layer
            if checkpoint:
                run = nn.utils.checkpoint(layer, run)
            outputs: Any = run(x, mask, cache, position_ids)
            x = outputs[0] if eager else outputs
            if eager:
                attentions.append(outputs[1])
            hidden_states.append(x)
        hidden_states[-1] = self.norm(x)
        return hidden_states, attentions

    def _masks(
        self, x: mx.array, attention_mask: mx.array | None, cache: list[Any] | None
    ) -> list[mx.array | str | None]:
        """Of each layer, the mask: causal, with the padding and the layer's window in it."""
        first = cache[0] if cache else None
        by_window = {
            window: padded_mask(x, attention_mask, first, window)
            if attention_mask is not None
            else plain_mask(x.shape[1], first, window)
            for window in set(self._windows)
        }
        return [by_window[window] for window in self._windows]


def _selected(states: list[mx.array], wanted: bool | int | Sequence[int]) -> tuple[mx.array | None, ...]:
    """All of the states for True, else those at these indices and None for the others."""
    if isinstance(wanted, bool):
        return tuple(states)
    indices = [wanted] if isinstance(wanted, int) else wanted
    kept = {range(len(states))[i] for i in indices if -len(states) <= i < len(states)}
    return tuple(state if i in kept else None for i, state in enumerate(states))
