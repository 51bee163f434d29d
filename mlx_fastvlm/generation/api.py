"""A prompt and its images in, a streamed answer out."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from .answer import Answer, GenerationResponse
from .engine import Engine
from .options import GenerationOptions, Options, lists_options

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.messages import Prompt
    from ..processing.processor import FastVlmProcessor

Responses = Generator[GenerationResponse, None, None]


@lists_options
def generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options: Unpack[Options],
) -> str:
    """The whole answer; arguments and errors as for :func:`stream_generate`.

    Warns where ``max_tokens`` cut an answer that has a ``json_schema``, ``regex``, ``choices`` or ``grammar``.
    """
    given = GenerationOptions(**options)
    responses = list(stream_answer(model, processor, prompt, image, given))
    given.warn_of_cut(responses[-1].finish_reason)
    return "".join(response.text for response in responses)


@lists_options
def stream_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options: Unpack[Options],
) -> Responses:
    """Answer a prompt about images, token by token.

    Args:
        prompt: a question, or chat messages (see ``FastVlmProcessor.apply_chat_template``); messages may bring their
            own images, as in the OpenAI and transformers formats.
        image: an image, several, or none; see :func:`mlx_fastvlm.load_image` for what can be one. They go where the
            prompt has ``<image>`` marks (in messages: or parts), and without marks before the first question.
        options: see :class:`mlx_fastvlm.GenerationOptions`.

    Raises:
        ValueError, OSError: for a bad argument or image, before anything runs.
    """
    return stream_answer(model, processor, prompt, image, GenerationOptions(**options))


def stream_answer(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None,
    options: GenerationOptions,
) -> Responses:
    """:func:`stream_generate` for whoever holds the options already: sessions and commands."""
    return stream_answers(model, processor, prompt, image, options, n=1)[0]


def stream_answers(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None,
    options: GenerationOptions,
    n: int,
) -> list[Responses]:
    """``n`` answers, see :meth:`Engine.submit_n`: whichever is read, all come along."""
    start = time.perf_counter()
    engine = Engine(model, processor, max_rows=max(1, n), prefill_step_size=options.prefill_step_size)
    request = engine.request(prompt, image, options)
    return [_responses(answer) for answer in engine.enqueue_n(n, request, options, start)]


def _responses(answer: Answer) -> Responses:
    """The whole answer, or as much of it as is wanted."""
    try:
        yield from answer
    finally:
        answer.close()
