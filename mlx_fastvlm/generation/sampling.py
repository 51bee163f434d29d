"""Logits -> the next tokens, of all rows of a step at once."""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .filters import keep_allowed, keep_min_p, keep_top_k, keep_top_p
from .penalties import make_logits_processors

if TYPE_CHECKING:
    from .constraints import Grammar
    from .options import GenerationOptions


@dataclass
class Choice:
    """The tokens that were chosen for rows of like settings; nothing of it need be computed yet.

    Attributes:
        tokens: (rows,), int.
        largest: (rows,), each row's largest logit, for ``decoding.check_finite``: it comes along with the token, so
            nothing waits for it.
        logprobs: (rows,), the tokens' log-probabilities, if asked for.
        alternatives: the likeliest tokens and their log-probabilities, both (rows, top_logprobs), if asked for.
    """

    tokens: mx.array
    largest: mx.array
    logprobs: mx.array | None = None
    alternatives: tuple[mx.array, mx.array] | None = None

    @property
    def arrays(self) -> list[mx.array]:
        given = [self.tokens, self.largest, self.logprobs, *(self.alternatives or ())]
        return [x for x in given if x is not None]

    @cached_property
    def read(self) -> list[list[Any]]:
        """``arrays`` as lists; waits until they are computed, once for all rows."""
        return [x.tolist() for x in self.arrays]  # type: ignore[misc]  # each has a row axis


@dataclass
class Pick:
    """One row's token in a :class:`Choice`."""

    choice: Choice
    index: int

    @property
    def token(self) -> int:
        token: int = self.choice.read[0][self.index]
        return token

    @property
    def largest(self) -> float:
        largest: float = self.choice.read[1][self.index]
        return largest

    @property
    def logprob(self) -> float | None:
        return None if self.choice.logprobs is None else self.choice.read[2][self.index]

    @property
    def alternatives(self) -> list[tuple[int, float]] | None:
        """The likeliest tokens with their log-probabilities, likeliest first."""
        if self.choice.alternatives is None:
            return None
        tokens, logprobs = (self.choice.read[i][self.index] for i in (-2, -1))
        possible = [(token, logprob) for token, logprob in zip(tokens, logprobs) if logprob > -math.inf]
        return sorted(possible, key=lambda pair: -pair[1])


def tokens_of(picks: list[Pick]) -> mx.array:
    """(rows,), the picked tokens, on the device: mostly one choice's as they are."""
    starts: dict[int, int] = {}  # where each choice's tokens begin among all
    pieces: list[mx.array] = []
    for choice in (pick.choice for pick in picks):
        if id(choice) not in starts:
            starts[id(choice)] = sum(piece.size for piece in pieces)
            pieces.append(choice.tokens)
    tokens = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
    places = [starts[id(pick.choice)] + pick.index for pick in picks]
    return tokens if places == list(range(tokens.size)) else tokens[mx.array(places)]


class Sampler:
    """How the tokens of one answer are chosen.

    Its random numbers depend on the seed and on how many tokens the answer has, and on nothing else: neither what ran
    before nor what runs beside it changes an answer, and an answer that is begun again goes on the same.

    Args:
        ids: the token ids of the prompt, without image placeholders, which may be no ids of the vocabulary.
        seed: see :func:`any_seed`.
        said: the ids of the answer so far.
        ends: the ids that end an answer.
        grammar: what the answer must be, if anything.

    Attributes:
        like: samplers of which this is equal can choose together.
        produced: tokens that were chosen.
    """

    def __init__(
        self,
        options: GenerationOptions,
        ids: list[int],
        seed: int,
        said: Sequence[int] = (),
        ends: Iterable[int] = (),
        grammar: Grammar | None = None,
    ) -> None:
        self.options = options
        sampling = (options.top_p, options.top_k, options.min_p) if options.temperature > 0 else ()
        self.like = (float(options.temperature), *sampling, options.logprobs, options.top_logprobs)
        self.produced = len(said)
        self._seed = seed
        self._processors = make_logits_processors(options, len(ids), ends)
        self._tokens = mx.array([*ids, *said], mx.int32)
        self._constraint = None if grammar is None else grammar.begin(said)
        self._last: Pick | None = None  # which the constraint has not seen yet

    @property
    def state(self) -> list[mx.array]:
        """What the next choice goes on from. Once it is computed, any thread may make that choice."""
        return [self._tokens] if self._processors else []

    def processed(self, logits: mx.array) -> mx.array:
        """Logits (1, vocabulary) after the processors.

        Raises:
            Exception: whatever a processor raises.
            ValueError: where one returns another shape.
        """
        changed = logits
        for process in self._processors:
            changed = process(self._tokens, changed)
        if changed.shape != logits.shape:
            raise ValueError(
                f"A logits processor turned {tuple(logits.shape)} logits into {tuple(changed.shape)}; return all of "
                "them, with -inf where a token is ruled out."
            )
        return changed

    @property
    def processes(self) -> bool:
        return bool(self._processors)

    @property
    def constrained(self) -> bool:
        return self._constraint is not None

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next, see :meth:`Constraint.allowed`; None for all.

        Waits for the token before, on which it depends.

        Raises:
            ValueError: none may.
        """
        if self._constraint is None:
            return None
        if self._last is not None:
            self._constraint.take(self._last.token)
            self._last = None
        return self._constraint.allowed()

    @property
    def key(self) -> tuple[int, int]:
        """A random key for the next token, as MLX's generator takes it: two numbers of 32 bits."""
        numbers = self._seed.to_bytes(8, "little") + self.produced.to_bytes(8, "little")
        digest = hashlib.blake2b(numbers, digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def take(self, pick: Pick) -> None:
        """Go on from a token that was chosen."""
        self.produced += 1
        if self._constraint is not None:
            self._last = pick
        if self._processors:
            token = pick.choice.tokens[pick.index : pick.index + 1].astype(mx.int32)
            self._tokens = mx.concatenate([self._tokens, token])


def any_seed(options: GenerationOptions) -> int:
    """The seed of the options; else one from MLX's generator in the main thread, where ``mx.random.seed`` rules it, and
    from the system elsewhere.

    MLX has a generator for each thread, and all of them start with the same state: what each thread drew first would be
    what all the others drew.
    """
    if options.seed is not None or options.temperature == 0:
        return options.seed or 0
    if threading.current_thread() is not threading.main_thread():
        return secrets.randbits(31)
    return int(mx.random.randint(0, 2**31 - 1).item())  # type: ignore[arg-type]  # a whole one


def choose(samplers: list[Sampler], logits: mx.array) -> list[Pick | Exception]:
    """The next token of each row, by logits (rows, vocabulary); where a row's processor fails, its error instead.

    Log-probabilities are those of the logits that the processors leave, before temperature and selection. Everything is
    on its way to the device when this returns.
    """
    if any(sampler.constrained for sampler in samplers):
        mx.async_eval(logits)  # the decoder goes on, while grammars wait for its last token and say what may follow
    picked: list[Any] = [None] * len(samplers)
    choices: list[Choice] = []
    for places in _alike(samplers):
        good, rows = _constrained(samplers, *_processed(samplers, places, logits, picked), picked)
        if not good:
            continue
        choice = _choose([samplers[i] for i in good], rows)
        choices.append(choice)
        for index, i in enumerate(good):
            picked[i] = Pick(choice, index)
            samplers[i].take(picked[i])
    mx.async_eval([choice.arrays for choice in choices], [sampler.state for sampler in samplers])
    return picked


def _alike(samplers: list[Sampler]) -> list[list[int]]:
    """The places of samplers that choose together."""
    groups: dict[Any, list[int]] = {}
    for i, sampler in enumerate(samplers):
        groups.setdefault(sampler.like, []).append(i)
    return list(groups.values())


def _processed(
    samplers: list[Sampler], places: list[int], logits: mx.array, picked: list[Any]
) -> tuple[list[int], mx.array]:
    """The places that a choice can be made for, and their logits; errors go into ``picked``."""
    if not any(samplers[i].processes for i in places):
        return places, logits if len(places) == len(samplers) else logits[mx.array(places)]
    good, rows = [], []
    for i in places:
        try:
            rows.append(samplers[i].processed(logits[i : i + 1]))
            good.append(i)
        except Exception as error:
            picked[i] = error
    return good, mx.concatenate(rows) if rows else logits[:0]


def _constrained(
    samplers: list[Sampler], places: list[int], logits: mx.array, picked: list[Any]
) -> tuple[list[int], mx.array]:
    """The same, with what grammars rule out at minus infinity; logits are the places' own."""
    if not any(samplers[i].constrained for i in places):
        return places, logits
    every = np.full((logits.shape[-1] + 31) // 32, -1, np.int32)
    good, words = [], []
    for index, i in enumerate(places):
        try:
            allowed = samplers[i].allowed()
            words.append(every if allowed is None else allowed)
            good.append(index)
        except Exception as error:
            picked[i] = error
    if not good:
        return [], logits
    rows = logits if len(good) == len(places) else logits[mx.array(good)]
    return [places[index] for index in good], keep_allowed(rows, mx.array(np.stack(words)))


def _choose(samplers: list[Sampler], logits: mx.array) -> Choice:
    """The choice of samplers that are alike."""
    options = samplers[0].options
    tokens = mx.argmax(logits, axis=-1) if options.temperature == 0 else _sample(samplers, logits)
    choice = Choice(tokens, logits.max(axis=-1))
    if not options.logprobs and not options.top_logprobs:  # greedy needs no normalisation, and none is computed
        return choice
    normalised = normalise(logits)
    choice.logprobs = mx.take_along_axis(normalised, tokens[:, None], axis=-1)[:, 0]
    if options.top_logprobs:
        count = min(options.top_logprobs, logits.shape[-1])
        ids = mx.argpartition(-normalised, kth=count - 1, axis=-1)[:, :count]
        choice.alternatives = ids, mx.take_along_axis(normalised, ids, axis=-1)
    return choice


def _sample(samplers: list[Sampler], logits: mx.array) -> mx.array:
    """By the largest of logits and Gumbel noise (Maddison et al., arXiv 1611.00712), which samples their softmax."""
    options = samplers[0].options
    scores = logits.astype(mx.float32)
    if options.top_p < 1 or options.min_p > 0:
        scores = normalise(logits)
    if options.top_p < 1:
        scores = keep_top_p(scores, options.top_p)
    if options.min_p > 0:
        scores = keep_min_p(scores, options.min_p)
    if 0 < options.top_k < scores.shape[-1]:
        scores = keep_top_k(scores, options.top_k)
    keys = mx.array([sampler.key for sampler in samplers], mx.uint32)
    return mx.argmax(scores / float(options.temperature) + _noise(keys, scores.shape[-1]), axis=-1)


def _noise(keys: mx.array, size: int) -> mx.array:
    """Gumbel noise (rows, size): each row's is what its key alone would give."""
    if len(keys) == 1:
        return mx.random.gumbel((size,), key=keys[0])[None]

    def draw(key: mx.array) -> mx.array:
        return mx.random.gumbel((size,), key=key)

    return mx.vmap(draw)(keys)


def normalise(logits: mx.array) -> mx.array:
    """Logits -> log-probabilities, float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
