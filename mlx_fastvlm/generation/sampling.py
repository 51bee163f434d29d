"""Logits -> the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .options import GenerationOptions


@dataclass
class Sample:
    """What a :class:`Sampler` chose, nothing of it computed yet.

    Attributes:
        token: (1,), int.
        largest: (1,), the largest logit, for ``decoding.check_finite``: it comes along with the token, so nothing waits
            for it.
        logprob: (1,), the token's log-probability, if asked for.
    """

    token: mx.array
    largest: mx.array
    logprob: mx.array | None

    @property
    def arrays(self) -> list[mx.array]:
        return [self.token, self.largest] + ([] if self.logprob is None else [self.logprob])


class Sampler:
    """Chooses the tokens of one answer.

    It has random numbers of its own, so neither what ran before nor what runs beside it changes an answer.

    Args:
        ids: the prompt's token ids without image placeholders, which may be no ids of the vocabulary.
    """

    def __init__(self, options: GenerationOptions, ids: list[int]):
        self._options = options
        self._processors = _processors(options)
        self._tokens = mx.array(ids, mx.int32)
        # Without a seed it takes one from MLX's generator, which mx.random.seed controls.
        if options.temperature > 0:
            seed: Any = mx.random.randint(0, 2**31 - 1).item() if options.seed is None else options.seed
            self._key = mx.random.key(seed)

    def __call__(self, logits: mx.array) -> Sample:
        """Choose by logits (1, vocabulary).

        Log-probabilities are those of the logits that the processors leave, before temperature and selection.
        """
        for process in self._processors:
            logits = process(self._tokens, logits)
        token = mx.argmax(logits, axis=-1) if self._options.temperature == 0 else self._sample(logits)
        if self._processors:
            self._tokens = mx.concatenate([self._tokens, token.astype(mx.int32)])
        logprob = None  # greedy needs no normalisation, and none is computed
        if self._options.logprobs:
            logprob = mx.take_along_axis(_normalise(logits), token[:, None], axis=-1)[:, 0]
        return Sample(token, logits.max(axis=-1), logprob)

    def _sample(self, logits: mx.array) -> mx.array:
        from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

        options, logprobs = self._options, _normalise(logits)
        if options.top_p < 1:
            logprobs = apply_top_p(logprobs, options.top_p)
        if options.min_p > 0:
            logprobs = apply_min_p(logprobs, options.min_p)
        if 0 < options.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, options.top_k)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs / options.temperature, key=key)


def _normalise(logits: mx.array) -> mx.array:
    """Logits -> log-probabilities, float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _processors(options: GenerationOptions) -> list:
    own = options.logits_processors or []
    if options.logit_bias is None and options.repetition_penalty is None:
        return own
    from mlx_lm.sample_utils import make_logits_processors

    size = options.repetition_context_size
    return [*make_logits_processors(options.logit_bias, options.repetition_penalty, size), *own]
