"""Given answers, scored behind a question that an engine has read."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..cache.kv import KVCache
from ..cache.prompt import PromptCache
from ..errors import require
from .sampling import normalise

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .options import GenerationOptions

# Of the choices' tokens, so many at most go through the decoder at a time, in so many rows.
TOKENS, ROWS = 256, 16

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Decision:
    """What :func:`decide` found.

    Attributes:
        choice: the likeliest.
        probabilities: of each choice, their sum 1: how likely an answer begins with it, and with no longer one of the
            choices, among answers that begin with any.
        logprobs: of each choice, the log-probability (natural logarithm) that an answer begins with its tokens.
    """

    choice: str
    probabilities: dict[str, float]
    logprobs: dict[str, float]


class DecisionReading:
    """A question on its way through an engine, whoever runs it; makes no array before the engine reads the prompt.

    Raises:
        UsageError: the choices can't be told apart.
    """

    def __init__(self, processor: FastVlmProcessor, choices: list[str]) -> None:
        self._choices, self._tokens = choices, read_choices(processor, choices)
        self._cache = PromptCache()
        self._logits: mx.array  # behind the prompt's last token, (1, vocabulary)

    def options(self, options: GenerationOptions) -> GenerationOptions:
        """For the engine: one token, which nobody looks at."""
        return replace(options, max_tokens=1, prompt_cache=self._cache, logits_processors=[self._look])

    def _look(self, _: mx.array, logits: mx.array) -> mx.array:
        self._logits = logits
        return logits

    def decide(self, model: FastVlmForConditionalGeneration) -> Decision:
        """When the engine's answer has ended without an error."""
        logprobs = _logprobs(model, self._cache.caches, self._logits, self._tokens)
        return _decision(self._choices, self._tokens, logprobs)


def read_choices(processor: FastVlmProcessor, choices: list[str]) -> list[Tokens]:
    """The token ids of each choice; ``UsageError`` where they can't be told apart."""
    several = isinstance(choices, (list, tuple)) and all(isinstance(choice, str) for choice in choices)
    require(several and len(choices) >= 2, "choices must be a list of two texts or more", choices)
    require(all(choices), "choices must not hold an empty text", choices)
    texts: dict[Tokens, str] = {}
    for choice in choices:
        ids = tuple(processor.encode_answer(choice))
        require(ids not in texts, f"choices must differ, and one is the same as {texts.get(ids)!r}", choice)
        texts[ids] = choice
    return list(texts)


def _logprobs(
    model: FastVlmForConditionalGeneration, caches: list[KVCache], logits: mx.array, tokens: list[Tokens]
) -> list[float]:
    """The joint log-probability of each choice's tokens behind a prompt.

    All first tokens are told by the prompt's own logits. What choices have in common behind them is read once.
    """
    first = normalise(logits)[0]
    chosen = first[mx.array([ids[0] for ids in tokens])]
    logprobs: list[float] = chosen.tolist()  # type: ignore[assignment]  # it has one axis
    paths = _paths(tokens)
    scored: dict[Tokens, list[int]] = {path: [] for path in paths}  # the choices that are scored along each
    for i, ids in enumerate(tokens):
        if len(ids) > 1:
            scored[paths[bisect_left(paths, ids[:-1])]].append(i)
    for some in _groups(paths):
        along = _read(model, caches, some)
        for row, path in enumerate(some):
            for i in scored[path]:
                rest: Any = along[row, mx.arange(len(tokens[i]) - 1), mx.array(tokens[i][1:])].tolist()
                logprobs[i] = math.fsum([logprobs[i], *rest])  # long sums would lose digits in float32
    return logprobs


def _paths(tokens: list[Tokens]) -> list[Tokens]:
    """What the decoder has to read to score choices, in order: their tokens but the last, without others' beginnings.

    So the first path that does not come before a choice's own is one that begins with it.
    """
    heads = sorted({ids[:-1] for ids in tokens if len(ids) > 1})
    return [head for head, after in zip(heads, [*heads[1:], ()]) if after[: len(head)] != head]


def _groups(paths: list[Tokens]) -> Iterator[list[Tokens]]:
    """Paths of like length, as many as fit in one call of the decoder."""
    group: list[Tokens] = []
    for path in sorted(paths, key=len):
        if group and (len(group) == ROWS or (len(group) + 1) * len(path) > TOKENS):
            yield group
            group = []
        group.append(path)
    if group:
        yield group


def _read(model: FastVlmForConditionalGeneration, caches: list[KVCache], paths: list[Tokens]) -> mx.array:
    """Log-probabilities of what follows each token of each path, (paths, longest, vocabulary)."""
    batch = mx.array([[*path, *[0] * (len(paths[-1]) - len(path))] for path in paths])
    repeated = [_repeated(cache, len(paths)) for cache in caches]
    hidden = model.language_model(model.get_input_embeddings()(batch), cache=repeated).last_hidden_state
    return normalise(model.logits(hidden))


def _repeated(cache: KVCache, rows: int) -> KVCache:
    """A cache with the same tokens for so many rows."""
    repeated = KVCache()
    assert cache.keys is not None  # a prompt has tokens
    assert cache.values is not None
    keys, values = cache.in_order(cache.keys), cache.in_order(cache.values)
    repeated.keys = mx.broadcast_to(keys, (rows, *keys.shape[1:]))
    repeated.values = mx.broadcast_to(values, (rows, *values.shape[1:]))
    repeated.offset = cache.offset
    return repeated


def _decision(choices: list[str], tokens: list[Tokens], logprobs: list[float]) -> Decision:
    """Probabilities among the choices.

    Where a choice begins like another, only the answers count for the shorter that do not go on to the longer.
    """
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    own = list(weights)
    above: list[int] = []  # choices that the current one begins with, the longest last
    for i in sorted(range(len(tokens)), key=lambda i: tokens[i]):
        while above and tokens[i][: len(tokens[above[-1]])] != tokens[above[-1]]:
            above.pop()
        if above:
            own[above[-1]] -= weights[i]
        above.append(i)
    own = [max(weight, 0.0) for weight in own]  # rounding may leave a little less than nothing
    probabilities = [weight / sum(own) for weight in own]
    best = max(range(len(choices)), key=probabilities.__getitem__)
    return Decision(choices[best], dict(zip(choices, probabilities)), dict(zip(choices, logprobs)))
