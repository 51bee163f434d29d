"""A prompt and its images in, a streamed answer out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..cache.prompt import PromptCache
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.threads import end_streams_with_thread
from ..processing.images import ImageSource
from ..processing.messages import Prompt
from ..processing.processor import FastVlmProcessor
from .decoding import check_finite, prefill, step
from .options import GenerationOptions
from .request import Request, make_request
from .sampling import Sample, Sampler
from .text import TextStream


@dataclass
class GenerationResponse:
    """One step of an answer.

    Attributes:
        text: what this step adds to the answer; often a token's text, sometimes "" while a character is incomplete or
            a stop string may be beginning.
        token: the token's id.
        finish_reason: None until the last step; then "stop" (the model or a stop string ended the answer) or "length"
            (max_tokens).
        prompt_tokens: tokens of the prompt, those of the pictures included.
        cached_tokens: how many of them the prompt cache held already.
        prompt_tps: prompt tokens a second, prefill alone, without the cached ones.
        generation_tokens: tokens of the answer so far.
        generation_tps: tokens a second after the first.
        time_to_first_token: seconds from the call to the first token: pictures, vision tower and prefill.
        peak_memory: the most memory that MLX has used, in GB.
        logprob: the token's log-probability (natural logarithm), with the option ``logprobs``; None without.
    """

    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    time_to_first_token: float
    peak_memory: float
    logprob: float | None = None


def generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options,
) -> str:
    """The whole answer; arguments and errors as for :func:`stream_generate`."""
    return "".join(response.text for response in stream_generate(model, processor, prompt, image, **options))


def stream_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options,
) -> Iterator[GenerationResponse]:
    """Answer a prompt about pictures, token by token.

    Args:
        prompt: a question, or chat messages (see ``FastVlmProcessor.apply_chat_template``); messages may bring their
            own pictures, as in the OpenAI and transformers formats.
        image: a picture, several, or none; see :func:`mlx_fastvlm.load_image` for what can be one. They go where the
            prompt has ``<image>`` marks (in messages: or parts), and without marks before the first question.
        options: see :class:`mlx_fastvlm.GenerationOptions`.

    Raises:
        ValueError, OSError: for a bad argument or picture, before anything runs.
    """
    chosen = GenerationOptions(**options)
    chosen.check(model)
    cache = chosen.prompt_cache
    if cache is None:
        cache = PromptCache(chosen.max_kv_size, chosen.kv_bits, chosen.kv_group_size)
    start = time.perf_counter()
    request = make_request(processor, prompt, image, chosen)
    request.check(model, bounded=cache.max_kv_size is not None)
    cache.check(model, request.tokens)
    return _stream(model, processor, request, cache, chosen, start)


def _stream(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    request: Request,
    cache: PromptCache,
    options: GenerationOptions,
    start: float,
) -> Iterator[GenerationResponse]:
    """Prefill, then decode, the next token always computing while the caller handles this one."""
    end_streams_with_thread()
    tokens = request.tokens
    cached = cache.begin(model, tokens)
    features = request.features(model, processor, options, skip=cached)
    prefill_start = time.perf_counter()
    embeddings = model.embed(mx.array([request.ids[cached:]]), features)
    choose = Sampler(options, request.text_ids)
    answer = TextStream(processor, options.stop_strings)

    def ahead(logits: mx.array) -> Sample:
        choice = choose(logits)
        mx.async_eval(*choice.arrays)
        return choice

    with cache.growing(tokens) as layers:
        upcoming = ahead(prefill(model, embeddings, layers, options.prefill_step_size, options.progress))
    for count in range(1, options.max_tokens + 1):
        choice = upcoming
        if count < options.max_tokens:
            with cache.growing(tokens) as layers:
                upcoming = ahead(step(model, choice.token, layers))
        token: Any = choice.token.item()
        largest: Any = choice.largest.item()
        logprob: Any = None if choice.logprob is None else choice.logprob.item()
        check_finite(largest, model, bool(options.logits_processors))
        tokens.append(token)
        now = time.perf_counter()
        if count == 1:
            first = now
        text = answer.add(token)
        last = answer.ended or count == options.max_tokens
        if last:
            text += answer.finish()
        yield GenerationResponse(
            text=text,
            token=token,
            finish_reason="stop" if answer.ended else "length" if last else None,
            prompt_tokens=len(request.ids),
            cached_tokens=cached,
            prompt_tps=(len(request.ids) - cached) / (first - prefill_start),
            generation_tokens=count,
            generation_tps=(count - 1) / (now - first) if count > 1 else 0.0,
            time_to_first_token=first - start,
            peak_memory=mx.get_peak_memory() / 1e9,
            logprob=logprob,
        )
        if last:
            return
        if count % 256 == 0:
            mx.clear_cache()  # buffers that outgrown caches left behind
