"""What the model returns, with the names of transformers' outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass
class FastVlmModelOutputWithPast:
    """What :class:`FastVlmModel` returns.

    Attributes:
        last_hidden_state: (batch, length, text hidden size).
        past_key_values: the caches that were given, filled.
        hidden_states: the embeddings and every layer's output, each (batch, length, text hidden size), if asked for;
            None in the places of those that were not.
        attentions: every layer's weights, (batch, heads, length, keys), if asked for.
        image_hidden_states: (images, tokens, text hidden size), the projected features; None without images.
    """

    last_hidden_state: mx.array
    past_key_values: list[Any] | None = None
    hidden_states: tuple[mx.array | None, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    image_hidden_states: mx.array | None = None


@dataclass
class FastVlmCausalLMOutputWithPast:
    """What :class:`FastVlmForConditionalGeneration` returns.

    Attributes:
        loss: scalar, the mean cross entropy of the shifted labels; None without labels.
        logits: (batch, kept positions, vocabulary size).
        past_key_values, hidden_states, attentions, image_hidden_states: see :class:`FastVlmModelOutputWithPast`.
    """

    loss: mx.array | None
    logits: mx.array
    past_key_values: list[Any] | None = None
    hidden_states: tuple[mx.array | None, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    image_hidden_states: mx.array | None = None
