"""Several prompts at once: an engine that is kept full."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import require, require_whole
from .engine import Engine, engine_for_all
from .options import GenerationOptions, Options, lists_options

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.messages import Prompt
    from ..processing.processor import FastVlmProcessor
    from .answer import Answer


@lists_options
def batch_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompts: list[Prompt],
    images: list[ImageSource | list[ImageSource] | None] | None = None,
    *,
    batch_size: int = 16,
    **options: Unpack[Options],
) -> list[str]:
    """Answer several prompts, each as if it were alone.

    Args:
        prompts: questions or chat messages, as for :func:`mlx_fastvlm.stream_generate`.
        images: for each prompt its image, a list of them, or None; or None for no images at all.
        batch_size: how many prompts run at a time.
        options: see :class:`mlx_fastvlm.GenerationOptions`. With a ``prompt_cache``, the prompts take turns on it.

    Returns:
        The answers, in the prompts' order.

    Raises:
        ValueError, OSError: for a bad argument or image in any of them, before anything runs.
    """
    return answer_batch(model, processor, prompts, images, GenerationOptions(**options), batch_size)


def answer_batch(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompts: list[Prompt],
    images: list[ImageSource | list[ImageSource] | None] | None,
    options: GenerationOptions,
    batch_size: int,
) -> list[str]:
    """:func:`batch_generate` for whoever holds the options already."""
    check_batch_size(batch_size)
    pairs = pair(prompts, images, "prompts")
    engine = engine_for_all(model, processor, options, batch_size)
    options.check(model)
    requests = [engine.request(prompt, image, options) for prompt, image in pairs]
    answers = (engine.enqueue(request, options) for request in requests)
    texts = []
    for whole in in_order(engine, answers):
        if whole.error is not None:
            raise whole.error
        options.warn_of_cut(whole.finish_reason)
        texts.append(whole.text)
    return texts


def pair(
    prompts: list[Prompt], images: list[ImageSource | list[ImageSource] | None] | None, name: str
) -> list[tuple[Prompt, ImageSource | list[ImageSource] | None]]:
    """Each prompt with its images; ``ValueError`` where they do not match, which calls the prompts ``name``."""
    require(isinstance(prompts, (list, tuple)), f"{name} must be a list", prompts)
    images = [None] * len(prompts) if images is None else images
    if len(images) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} {name} and images for {len(images)}; give an entry for each, None for none."
        )
    return list(zip(prompts, images))


def check_batch_size(batch_size: int) -> None:
    require_whole("batch_size", batch_size)
    require(batch_size >= 1, "batch_size must be at least 1", batch_size)


@dataclass
class Whole:
    """An answer that has ended, or what there is of it.

    Attributes:
        finish_reason: as in the last response; None where an error ended it.
        error: that error.
    """

    answer: Answer | None = None
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    error: BaseException | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def take(self) -> None:
        """Take what has come since."""
        if self.answer is None:
            return
        self.pieces += [response.text for response in self.answer.ready()]
        if self.answer.ended:
            self.finish_reason, self.error = self.answer.finish_reason, self.answer.error
            self.answer = None


def in_order(engine: Engine, answers: Iterator[Answer | Exception]) -> Iterator[Whole]:
    """Run an engine that is kept full, and give each answer in its turn.

    Args:
        answers: asks for the next answer each time that it is advanced, which happens when there is room for one; or
            says what kept it from asking.
    """
    begun: deque[Whole] = deque()
    more = True
    while more or begun:
        while more and engine.room:
            answer = next(answers, None)
            more = answer is not None
            if isinstance(answer, Exception):
                begun.append(Whole(error=answer))
            elif answer is not None:
                begun.append(Whole(answer))
        engine.step()
        for whole in begun:
            whole.take()
        while begun and begun[0].answer is None:
            yield begun.popleft()
