"""A prompt and its images in, a streamed answer out."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..cache.prompt import PromptCache
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.threads import end_streams_with_thread
from ..processing.images import ImageSource
from ..processing.messages import Prompt
from ..processing.processor import FastVlmProcessor
from .decoding import check_finite, prefill, step
from .options import GenerationOptions, Options, lists_options
from .request import Request, make_request
from .sampling import Sample, Sampler
from .text import TextStream

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11


@dataclass
class GenerationResponse:
    """One step of an answer.

    Attributes:
        text: what this step adds to the answer; often a token's text, sometimes "" while a character is incomplete or
            a stop string may be beginning.
        token: the token's id.
        finish_reason: None until the last step; then "stop" (the model or a stop string ended the answer) or "length"
            (max_tokens).
        prompt_tokens: tokens of the prompt, those of the images included.
        cached_tokens: how many of them the prompt cache held already.
        prompt_tps: prompt tokens a second, prefill alone, without the cached ones.
        generation_tokens: tokens of the answer so far.
        generation_tps: tokens a second after the first.
        time_to_first_token: seconds from the call to the first token: images, vision tower and prefill.
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


Responses = Generator[GenerationResponse, None, None]


@lists_options
def generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options: Unpack[Options],
) -> str:
    """The whole answer; arguments and errors as for :func:`stream_generate`."""
    return "".join(response.text for response in stream_generate(model, processor, prompt, image, **options))


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
    options.check(model)
    cache = options.prompt_cache
    if cache is None:
        cache = PromptCache.from_policy(options.cache_policy)
    start = time.perf_counter()
    request = make_request(processor, prompt, image, options)
    request.check(model, bounded=cache.max_kv_size is not None)
    answer = RunningAnswer(model, processor, request, cache, options, start)
    cache.check(model, answer.tokens)
    return answer.responses()


class RunningAnswer:
    """One answer in the making: its prompt is read, and each step gives a token.

    The device always computes one token ahead: while the caller handles this one, the next is on its way.

    Attributes:
        tokens: of prompt and answer, as the prompt cache compares them; it knows the answer by this list.
    """

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        request: Request,
        cache: PromptCache,
        options: GenerationOptions,
        start: float,
    ):
        self.tokens = request.tokens
        self._model, self._processor = model, processor
        self._request, self._cache, self._options = request, cache, options
        self._text = TextStream(processor, options.stop_strings)
        self._sampler: Sampler  # these two hold arrays, which belong to the thread that reads the prompt
        self._upcoming: Sample
        self._produced = self._cached = 0
        self._start = self._prefill_start = self._first = start

    def responses(self) -> Responses:
        """The whole answer, step by step."""
        end_streams_with_thread()
        self._read_prompt()
        response = None
        while response is None or response.finish_reason is None:
            end_streams_with_thread()  # whichever it is by now
            response = self._step()
            yield response
            if response.generation_tokens % 256 == 0:
                mx.clear_cache()  # buffers that outgrown caches left behind

    def _read_prompt(self):
        """Encode the images and read the prompt, except for what the cache holds; the first token is on its way."""
        request, options = self._request, self._options
        self._sampler = Sampler(options, request.text_ids)
        self._cached = self._cache.begin(self._model, self.tokens)
        features = request.features(self._model, self._processor, options, skip=self._cached)
        self._prefill_start = time.perf_counter()
        embeddings = self._model.embed(mx.array([request.ids[self._cached :]]), features)
        with self._cache.growing(self.tokens) as caches:
            self._choose(prefill(self._model, embeddings, caches, options.prefill_step_size, options.progress))

    def _step(self) -> GenerationResponse:
        """The token that is on its way, once the next one is."""
        sample = self._upcoming
        self._produced += 1
        if self._produced < self._options.max_tokens:
            with self._cache.growing(self.tokens) as caches:
                self._choose(step(self._model, sample.token, caches))
        token: Any = sample.token.item()
        largest: Any = sample.largest.item()
        logprob: Any = None if sample.logprob is None else sample.logprob.item()
        check_finite(largest, self._model, bool(self._options.logits_processors))
        self.tokens.append(token)
        return self._respond(token, logprob)

    def _choose(self, logits: mx.array):
        """Have the next token computed, and with it whatever the caches take in."""
        self._upcoming = self._sampler(logits)
        mx.async_eval(*self._upcoming.arrays, *self._sampler.state)

    def _respond(self, token: int, logprob: float | None) -> GenerationResponse:
        now = time.perf_counter()
        if self._produced == 1:
            self._first = now
        text = self._text.add(token)
        finish_reason = None
        if self._text.ended or self._produced == self._options.max_tokens:
            finish_reason = "stop" if self._text.ended else "length"
            text += self._text.finish()
        prompt_tokens = len(self._request.ids)
        return GenerationResponse(
            text=text,
            token=token,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=self._cached,
            prompt_tps=(prompt_tokens - self._cached) / (self._first - self._prefill_start),
            generation_tokens=self._produced,
            generation_tps=(self._produced - 1) / (now - self._first) if self._produced > 1 else 0.0,
            time_to_first_token=self._first - self._start,
            peak_memory=mx.get_peak_memory() / 1e9,
            logprob=logprob,
        )
