"""What happens to logits between the model and the choice, in transformers' order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .penalties import penalised

if TYPE_CHECKING:
    from .stepping import TensorOptions


class LogitsChain:
    """Penalties, then the caller's processors, then for sampling the filters.

    Args:
        ends: ids that end a sequence.
        prompt: tokens of the prompt; ``min_new_tokens`` counts from there.
    """

    def __init__(self, options: TensorOptions, ends: list[int], prompt: int) -> None:
        self._options, self._ends, self._prompt = options, ends, prompt
        self._least = 1 + len(ends) if options.num_beams > 1 else 1  # tokens that every filter leaves

    def __call__(self, ids: mx.array, logits: mx.array) -> mx.array:
        """All ids (rows, length), and logits or log-probabilities (rows, vocabulary), float32."""
        options = self._options
        if options.repetition_penalty not in (None, 1):
            logits = _penalized(ids, logits, options.repetition_penalty)
        if options.no_repeat_ngram_size:
            logits = _without_repeated(ids, logits, options.no_repeat_ngram_size)
        if self._ends and ids.shape[1] - self._prompt < (options.min_new_tokens or 0):
            ends = mx.broadcast_to(mx.array(self._ends), (logits.shape[0], len(self._ends)))
            logits = mx.put_along_axis(logits, ends, mx.array(-mx.inf), axis=-1)
        for processor in options.logits_processor or []:
            logits = processor(ids, logits)
        return self._filtered(logits) if options.do_sample else logits

    def _filtered(self, logits: mx.array) -> mx.array:
        options = self._options
        if options.temperature not in (None, 1):
            logits = logits / options.temperature
        size = logits.shape[-1]
        if options.top_k:
            kept = min(max(options.top_k, self._least), size)
            smallest = mx.topk(logits, kept, axis=-1).min(axis=-1, keepdims=True)
            logits = mx.where(logits < smallest, -mx.inf, logits)
        if options.top_p is not None and options.top_p < 1:
            logits = self._nucleus(logits, options.top_p)
        if options.min_p:
            shares = mx.softmax(logits, axis=-1)
            small = shares < options.min_p * shares.max(axis=-1, keepdims=True)
            logits = mx.where(small & ~self._top(logits), -mx.inf, logits)
        return logits

    def _nucleus(self, logits: mx.array, top_p: float) -> mx.array:
        order = mx.argsort(logits, axis=-1)  # rising
        mass = mx.cumsum(mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
        drop = mass <= 1 - top_p
        drop[..., -self._least :] = False
        dropped = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, drop, axis=-1)
        return mx.where(dropped, -mx.inf, logits)

    def _top(self, logits: mx.array) -> mx.array:
        smallest = mx.topk(logits, self._least, axis=-1).min(axis=-1, keepdims=True)
        return logits >= smallest


def _penalized(ids: mx.array, logits: mx.array, penalty: Any) -> mx.array:
    """Tokens that were there, less likely."""
    inside = (ids >= 0) & (ids < logits.shape[-1])  # LLaVA's placeholder is no token
    return penalised(logits, mx.maximum(mx.where(inside, ids, ids[:, -1:]), 0), penalty)


def _without_repeated(ids: mx.array, logits: mx.array, size: int) -> mx.array:
    """No token that would end a run of ``size`` that was there before."""
    barred = np.zeros(logits.shape, bool)
    for row, tokens in enumerate(np.array(ids)):
        tokens = tokens.tolist()
        begun = tokens[len(tokens) - size + 1 :]
        for start in range(len(tokens) - size + 1):
            if tokens[start : start + size - 1] == begun:
                barred[row, tokens[start + size - 1]] = True
    return mx.where(mx.array(barred), -mx.inf, logits)
