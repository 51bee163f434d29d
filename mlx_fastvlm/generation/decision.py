"""Which of given answers the model would give, and how likely each is: exact, from one reading of the prompt."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

import mlx.core as mx

from ..cache.kv import KVCache
from ..cache.prompt import PromptCache
from ..errors import UsageError, require
from .batch import check_batch_size, in_order, pair
from .engine import Engine
from .options import GenerationOptions
from .sampling import normalise

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..cache.vision import VisionCache
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.messages import Prompt
    from ..processing.processor import FastVlmProcessor
    from ..processing.video import VideoSource
    from .answer import Answer
    from .options import Progress

# Of the choices' tokens, so many at most go through the decoder at a time, in so many rows.
TOKENS, ROWS = 256, 16

Tokens = tuple[int, ...]


class DecisionOptions(TypedDict, total=False):
    """The options of :func:`decide`; see :class:`mlx_fastvlm.GenerationOptions`. There is nothing to sample."""

    system: str | None
    image_size: int | None
    frames: int
    video: VideoSource
    fps: float
    max_frames: int
    vision_batch_size: int
    vision_cache: VisionCache | None
    prefill_step_size: int
    progress: Progress | None


def decision_options(options: GenerationOptions) -> DecisionOptions:
    """Those of the options that a decision has; ``UsageError`` where another is given."""
    given: Any = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}
    for name in given:
        if name not in DecisionOptions.__annotations__:
            raise UsageError(f"A decision among choices samples nothing and keeps no cache; leave out {name}.")
    return given


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


def decide(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    question: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    *,
    choices: list[str],
    **options: Unpack[DecisionOptions],
) -> Decision:
    """Choose among given answers by the model's own probabilities. Nothing is sampled.

    Args:
        question, image: as ``prompt`` and ``image`` of :func:`mlx_fastvlm.stream_generate`.
        choices: two answers or more, spelled as the model would begin its answer: "Yes", where it says "Yes." Each is
            scored as a whole, by the product of its tokens' probabilities.
        options: see :class:`DecisionOptions`.

    Raises:
        ValueError, OSError: for a bad argument or image, before anything runs.
        TypeError: for an option that there is not.
    """
    return batch_decide(model, processor, [question], [image], choices=choices, **options)[0]


def batch_decide(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    questions: list[Prompt],
    images: list[ImageSource | list[ImageSource] | None] | None = None,
    *,
    choices: list[str],
    batch_size: int = 16,
    **options: Unpack[DecisionOptions],
) -> list[Decision]:
    """:func:`decide` for each of several questions; arguments as for :func:`mlx_fastvlm.batch_generate`."""
    check_batch_size(batch_size)
    for name in options:
        if name not in DecisionOptions.__annotations__:
            raise TypeError(f"A decision has no option {name}; it has {', '.join(DecisionOptions.__annotations__)}.")
    given = GenerationOptions(max_tokens=1, **options)
    tokens = _tokens(processor, choices)
    pairs = pair(questions, images, "questions")
    engine = Engine(model, processor, max_rows=batch_size, prefill_step_size=given.prefill_step_size)
    requests = [engine.request(question, image, given) for question, image in pairs]
    read: deque[_Reading] = deque()

    def ask() -> Iterator[Answer]:
        for request in requests:
            read.append(_Reading())
            yield engine.enqueue(request, replace(given, **read[-1].options))

    found = []
    for whole in in_order(engine, ask()):
        if whole.error is not None:
            raise whole.error
        reading = read.popleft()
        logprobs = _logprobs(model, reading.cache.caches, reading.logits, tokens)
        found.append(_decision(choices, tokens, logprobs))
    return found


class _Reading:
    """A prompt on its way through the engine: its KV caches, and the logits behind its last token, (1, vocabulary)."""

    def __init__(self):
        self.cache = PromptCache()
        self.logits: mx.array

    @property
    def options(self) -> dict[str, Any]:
        """For the engine: one token, which nobody looks at."""
        return {"max_tokens": 1, "prompt_cache": self.cache, "logits_processors": [self._look]}

    def _look(self, _: mx.array, logits: mx.array) -> mx.array:
        self.logits = logits
        return logits


def _tokens(processor: FastVlmProcessor, choices: list[str]) -> list[Tokens]:
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
    logprobs: Any = first[mx.array([ids[0] for ids in tokens])].tolist()
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
