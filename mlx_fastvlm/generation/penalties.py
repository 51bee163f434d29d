"""Logits processors for the options ``logit_bias`` and ``repetition_penalty``; they compute what mlx-lm's do."""

from __future__ import annotations

import mlx.core as mx

from .options import GenerationOptions, LogitsProcessor


def make_logits_processors(options: GenerationOptions) -> list[LogitsProcessor]:
    """Those that the options ask for, then the caller's own, in the order that they run in."""
    processors: list[LogitsProcessor] = []
    if options.logit_bias:
        processors.append(_biasing(options.logit_bias))
    if options.repetition_penalty is not None:
        processors.append(_penalising(float(options.repetition_penalty), options.repetition_context_size))
    return [*processors, *(options.logits_processors or [])]


def _biasing(biases: dict[int, float]) -> LogitsProcessor:
    ids, values = mx.array(list(biases)), mx.array([float(bias) for bias in biases.values()])
    return lambda _, logits: logits.at[:, ids].add(values)


def _penalising(penalty: float, size: int) -> LogitsProcessor:
    """Makes the last ``size`` tokens less likely, whatever the sign of their logits (CTRL, arXiv 1909.05858)."""

    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        if not tokens.size:
            return logits
        recent = tokens[max(0, tokens.size - size) :][None]
        found = mx.take_along_axis(logits, recent, axis=-1)
        return mx.put_along_axis(logits, recent, mx.where(found < 0, found * penalty, found / penalty), axis=-1)

    return penalise
