"""Logits -> the next token."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .filters import keep_min_p, keep_top_k, keep_top_p
from .options import GenerationOptions
from .penalties import make_logits_processors


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
        self._temperature = float(options.temperature)
        self._processors = make_logits_processors(options)
        self._tokens = mx.array(ids, mx.int32)
        self._key: mx.array | None = None
        if self._temperature > 0:
            self._key = mx.random.key(_any_seed() if options.seed is None else options.seed)

    @property
    def state(self) -> list[mx.array]:
        """What the next choice goes on from. Once it is computed, any thread may make that choice."""
        return [self._tokens] + ([] if self._key is None else [self._key])

    def __call__(self, logits: mx.array) -> Sample:
        """Choose by logits (1, vocabulary).

        Log-probabilities are those of the logits that the processors leave, before temperature and selection.
        """
        for process in self._processors:
            logits = process(self._tokens, logits)
        token = mx.argmax(logits, axis=-1) if self._temperature == 0 else self._sample(logits)
        if self._processors:
            self._tokens = mx.concatenate([self._tokens, token.astype(mx.int32)])
        logprob = None  # greedy needs no normalisation, and none is computed
        if self._options.logprobs:
            logprob = mx.take_along_axis(_normalise(logits), token[:, None], axis=-1)[:, 0]
        return Sample(token, logits.max(axis=-1), logprob)

    def _sample(self, logits: mx.array) -> mx.array:
        options, logprobs = self._options, _normalise(logits)
        if options.top_p < 1:
            logprobs = keep_top_p(logprobs, options.top_p)
        if options.min_p > 0:
            logprobs = keep_min_p(logprobs, options.min_p)
        if 0 < options.top_k < logprobs.shape[-1]:
            logprobs = keep_top_k(logprobs, options.top_k)
        assert self._key is not None  # there is one where there is a temperature
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs / self._temperature, key=key)


def _any_seed() -> int:
    """A seed from MLX's generator in the main thread, where ``mx.random.seed`` rules it, and from the system elsewhere.

    MLX has a generator for each thread, and all of them start with the same state: what each thread drew first would be
    what all the others drew.
    """
    if threading.current_thread() is not threading.main_thread():
        return secrets.randbits(31)
    seed: Any = mx.random.randint(0, 2**31 - 1).item()
    return seed


def _normalise(logits: mx.array) -> mx.array:
    """Logits -> log-probabilities, float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
