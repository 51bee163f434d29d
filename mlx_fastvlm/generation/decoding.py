"""The decoder's two movements, over any caches: reading a prompt, and one step on; and a check of what comes out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration


def prefill(
    model: FastVlmForConditionalGeneration,
    embeddings: mx.array,
    caches: list[Any],
    step_size: int,
) -> mx.array:
    """Read a whole prompt in pieces of ``step_size`` tokens, mostly one.

    Args:
        embeddings: (batch, length, hidden size), image features in place.
        caches: one for each decoder layer.

    Returns:
        Logits after the last token, (batch, vocabulary); the head runs for no other.
    """
    length = embeddings.shape[1]
    for start in range(0, length, step_size):
        hidden = read_piece(model, embeddings[:, start : start + step_size], caches)
        if start + step_size < length:
            mx.eval(hidden)
            mx.clear_cache()
    return model.logits(hidden[:, -1])


def read_piece(model: FastVlmForConditionalGeneration, embeddings: mx.array, caches: list[Any]) -> mx.array:
    """Embeddings (batch, length, hidden size) -> hidden states of the same shape, and into the caches."""
    return model.language_model(embeddings, cache=caches).last_hidden_state


def step(model: FastVlmForConditionalGeneration, tokens: mx.array, caches: list[Any]) -> mx.array:
    """Tokens (batch,) -> the logits that follow, (batch, vocabulary)."""
    embeddings = model.get_input_embeddings()(tokens[:, None])
    return model.logits(model.language_model(embeddings, cache=caches).last_hidden_state[:, -1])


def check_finite(
    largest: float, model: FastVlmForConditionalGeneration, processors: bool, constrained: bool = False
) -> None:
    """``ValueError`` with the likeliest cause, where a token was chosen from logits that are not finite.

    Args:
        largest: the largest of them, which is NaN if any is, and minus infinity only if all are.
        processors: whether the caller's ``logits_processors`` took part.
        constrained: whether a grammar ruled tokens out.
    """
    if math.isfinite(largest):
        return
    parameters = tree_flatten(model.parameters())
    spoilt = [name for name, x in parameters if mx.issubdtype(x.dtype, mx.floating) and not mx.isfinite(x).all()]
    if spoilt:
        cause = f"{len(spoilt)} tensors hold NaN or infinity, first {spoilt[0]}: download or convert the model again"
    elif constrained and largest == -math.inf:
        cause = "logit_bias or logits_processors rule out every token that the constraint allows: leave them out"
    elif processors:
        cause = "the weights are finite, so look at the logits processors first"
    elif any(x.dtype == mx.float16 for _, x in parameters):
        cause = "float16 overflows: load the model with dtype bfloat16 or float32"
    else:
        cause = "the weights are finite but far too large: download or convert the model again"
    raise ValueError(f"The model's logits are not finite; {cause}.")
