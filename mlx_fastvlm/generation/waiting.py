"""An answer for programs that run on asyncio: the loop is free while the next token is computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from .api import Responses, stream_generate
from .options import Options, lists_options

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.messages import Prompt
    from ..processing.processor import FastVlmProcessor
    from .answer import GenerationResponse


@lists_options
async def astream_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options: Unpack[Options],
) -> AsyncGenerator[GenerationResponse, None]:
    """``async for response in astream_generate(...)``; arguments and errors as for :func:`stream_generate`.

    Everything runs in a thread of the answer's own; an error comes with the first response that is asked for. Leaving
    the loop, or a cancelled task, ends the answer after the step that is being computed. Many answers at once are
    faster in one :class:`Engine`, or through the server.
    """
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "astream_generate")  # one, as MLX's streams belong to a thread
    responses: Responses | None = None
    try:
        begin = partial(stream_generate, model, processor, prompt, image, **options)
        responses = await loop.run_in_executor(thread, begin)
        while (response := await loop.run_in_executor(thread, next, responses, None)) is not None:
            yield response
    finally:
        if responses is not None:
            thread.submit(responses.close)
        thread.shutdown(wait=False)
