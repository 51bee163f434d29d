"""Which of given answers the model would give, and how likely each is: exact, from one reading of the prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, TypedDict, cast

from ..errors import UsageError
from .batch import check_batch_size, in_order, pair
from .choices import Decision, DecisionReading, read_choices
from .engine import Engine
from .options import GenerationOptions

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


class DecisionOptions(TypedDict, total=False):
    """The options of :func:`decide`; see :class:`mlx_fastvlm.GenerationOptions`. There is nothing to sample."""

    system: str | None
    image_size: int | None
    frames: int
    video: VideoSource
    fps: float
    max_frames: int
    vision_batch_size: int | None
    vision_cache: VisionCache | None
    prefill_step_size: int
    progress: Progress | None


def decision_options(options: GenerationOptions) -> DecisionOptions:
    """Those of the options that a decision has; ``UsageError`` where another is given."""
    given = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}
    for name in given:
        if name not in DecisionOptions.__annotations__:
            raise UsageError(f"A decision among choices samples nothing and keeps no cache; leave out {name}.")
    return cast(DecisionOptions, given)


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
    read_choices(processor, choices)  # what is wrong with them is told before an image is opened
    pairs = pair(questions, images, "questions")
    engine = Engine(model, processor, max_rows=batch_size, prefill_step_size=given.prefill_step_size)
    requests = [engine.request(question, image, given) for question, image in pairs]
    read: deque[DecisionReading] = deque()

    def ask() -> Iterator[Answer]:
        for request in requests:
            read.append(DecisionReading(processor, choices))
            yield engine.enqueue(request, read[-1].options(given))

    found = []
    for whole in in_order(engine, ask()):
        if whole.error is not None:
            raise whole.error
        found.append(read.popleft().decide(model))
    return found
