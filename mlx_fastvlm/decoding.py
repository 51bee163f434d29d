"""The decoder's two movements, over any caches: reading a prompt, and one step on."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .model import FastVlmForConditionalGeneration
from .options import Progress


def prefill(
    model: FastVlmForConditionalGeneration,
    embeddings: mx.array,
    layers: list[Any],
    step_size: int,
    progress: Progress | None = None,
) -> mx.array:
    """Read a prompt in pieces of ``step_size`` tokens, mostly one.

    Args:
        embeddings: (batch, length, hidden size), image features in place.
        layers: one cache for each decoder layer.

    Returns:
        Logits after the last token, (batch, vocabulary); the head runs for no other.

    Raises:
        ValueError: where they are not finite.
    """
    length = embeddings.shape[1]
    for start in range(0, length, step_size):
        end = min(start + step_size, length)
        hidden = model.language_model(embeddings[:, start:end], cache=layers).last_hidden_state
        if end < length or progress is not None:
            mx.eval(hidden)
        if end < length:
            mx.clear_cache()
        if progress is not None:
            progress(end, length)
    logits = model.logits(hidden[:, -1])
    if not mx.isfinite(logits).all():
        raise ValueError("The model computes values that are not finite; its weights are broken: convert them again.")
    return logits


def step(model: FastVlmForConditionalGeneration, tokens: mx.array, layers: list[Any]) -> mx.array:
    """Tokens (batch,) -> the logits that follow, (batch, vocabulary)."""
    embeddings = model.get_input_embeddings()(tokens[:, None])
    return model.logits(model.language_model(embeddings, cache=layers).last_hidden_state[:, -1])
