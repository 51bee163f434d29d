"""One answer in the making: all that belongs to it alone."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import TYPE_CHECKING

import mlx.core as mx

from .answer import Alternative, Answer, GenerationResponse
from .decoding import check_finite
from .sampling import Pick, Sampler, any_seed
from .text import TextStream

if TYPE_CHECKING:
    from ..cache.prompt import PromptCache
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.prepared import Image
    from ..processing.processor import FastVlmProcessor
    from .options import GenerationOptions
    from .request import Request
    from .shared import SharedPrompt


class Row:
    """A row waits; then its prompt is read; then each step gives it a token.

    Args:
        cache: the caller's prompt cache, or one of the row's own.
        start: when the request was made, in ``time.perf_counter`` seconds.
        shared: the prompt, where other rows have the same, until this one has read it or begun with what was read.

    Attributes:
        tokens: of prompt and answer, as the prompt cache compares them; it knows the row by this list.
        ids: what the decoder has to read before it can choose the next token: the prompt, and after an interrupt the
            answer so far. ``read`` of them are in the caches.
        images: those among the ids that are not read yet.
        embeddings: (1, ids that were not cached, hidden size), while they are being read.
        encoded: features on their way, for a vision cache once they are there: by its keys.
        pick: the token that is on its way, None before, or the error that keeps it from coming.
        merged: whether its keys and values lie with those of others.
    """

    def __init__(
        self,
        processor: FastVlmProcessor,
        request: Request,
        options: GenerationOptions,
        cache: PromptCache,
        answer: Answer,
        start: float,
        shared: SharedPrompt | None = None,
    ) -> None:
        self.shared = shared
        self.request, self.options, self.cache, self.answer = request, options, cache, answer
        self.tokens = request.tokens
        self.pick: Pick | Exception | None = None
        self.merged = False
        self.ids: list[int] = []
        self.read = 0
        self.images: list[Image] = []
        self.embeddings: mx.array | None = None
        self.encoded: dict[Hashable, mx.array] = {}
        self.sampler: Sampler  # holds arrays, which belong to the thread that reads the prompt
        self._processor = processor
        self._text = TextStream(processor, options.stop_strings)
        self._seed: int | None = None
        self._cached: int | None = None
        self._start = self._first = start
        self._prefill_start: float | None = None

    @property
    def shares(self) -> bool:
        """Whether others may share a batch with it: it has no prompt cache that outlives it."""
        return self.options.prompt_cache is None

    @property
    def said(self) -> list[int]:
        """The answer's token ids so far."""
        return self.tokens[len(self.request.ids) :]  # type: ignore[return-value]  # an answer has no images

    @property
    def produced(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.tokens) - len(self.request.ids)

    @property
    def last(self) -> bool:
        """Whether the token that is on its way will be the last, whatever it is."""
        return self.produced + 1 >= self.options.max_tokens

    @property
    def unread_images(self) -> list[Image]:
        """Those that the tower has to see; before the row has begun, all."""
        return self.images if self.ids else self.request.images

    def begin(self, model: FastVlmForConditionalGeneration) -> None:
        """Take up the prompt, except for what its cache holds."""
        self._seed = any_seed(self.options) if self._seed is None else self._seed
        text_ids, ends = self.request.text_ids, self._processor.eos_token_ids
        self.sampler = Sampler(self.options, text_ids, self._seed, self.said, ends, self.request.grammar)
        self.read = self.cache.begin(model, self.tokens)
        self._cached = self.read if self._cached is None else self._cached
        self.ids = [*self.request.ids, *self.said]
        self.images = self.request.images_behind(self.read)

    def begin_again(self, model: FastVlmForConditionalGeneration) -> None:
        """After an interrupt: what was delivered stands, and the rest is computed again.

        Raises:
            ValueError: another answer has taken over the caller's prompt cache.
        """
        self.pick, self.merged, self.embeddings = None, False, None
        del self.tokens[len(self.request.ids) + self.answer.delivered :]
        self._text = TextStream(self._processor, self.options.stop_strings)
        for token in self.said:
            self._text.add(token)
        if self.ids:
            self.cache.check_owner(self.tokens)
            self.cache.drop()
        self.begin(model)

    def embed(self, model: FastVlmForConditionalGeneration, features: mx.array | None) -> None:
        """Make the decoder's input of the ids and the images' features, (images, tokens, hidden size) or None.

        Nothing waits for the features: the request was checked to have a placeholder for each.
        """
        if self._prefill_start is None:
            self._prefill_start = time.perf_counter()
        said = min(len(self.said), len(self.ids) - self.read)  # where an image's token is one that the model chose
        prompt, answer = self.ids[self.read : len(self.ids) - said], self.ids[len(self.ids) - said :]
        parts = [model.embed(mx.array([prompt]), features, None, True)] if prompt else []
        parts += [model.get_input_embeddings()(mx.array([answer]))] if answer else []
        self.embeddings = mx.concatenate(parts, axis=1)

    def next_piece(self, count: int) -> mx.array:
        """The input that comes next, (1, count, hidden size)."""
        assert self.embeddings is not None  # they are made before anything is read
        start = self.read - (len(self.ids) - self.embeddings.shape[1])
        return self.embeddings[:, start : start + count]

    def was_read(self, count: int) -> None:
        """The decoder has read so many of the ids."""
        self.read += count
        if self.options.progress is not None:
            assert self.embeddings is not None  # until all is read
            length = self.embeddings.shape[1]
            self.options.progress(self.read - (len(self.ids) - length), length)
        if self.read == len(self.ids):
            self.embeddings = None

    def deliver(self, pick: Pick, model: FastVlmForConditionalGeneration) -> None:
        """Add the token that was on its way to the answer; ``ValueError`` where it comes from broken logits."""
        check_finite(
            pick.largest, model, bool(self.options.logits_processors), constrained=self.request.grammar is not None
        )
        token = pick.token
        text = self._text.add(token)
        finish_reason = None
        if self._text.ended or self.last:
            finish_reason = "stop" if self._text.ended else "length"
            text += self._text.finish()
        response = self._response(pick, text, finish_reason)
        self.tokens.append(token)
        self.answer.deliver(response)

    def _response(self, pick: Pick, text: str, finish_reason: str | None) -> GenerationResponse:
        now, produced, prompt = time.perf_counter(), self.produced + 1, len(self.request.ids)
        if produced == 1:
            self._first = now
        assert self._cached is not None  # it has begun
        assert self._prefill_start is not None
        return GenerationResponse(
            text=text,
            token=pick.token,
            finish_reason=finish_reason,
            prompt_tokens=prompt,
            cached_tokens=self._cached,
            prompt_tps=(prompt - self._cached) / (self._first - self._prefill_start),
            generation_tokens=produced,
            generation_tps=(produced - 1) / (now - self._first) if produced > 1 else 0.0,
            time_to_first_token=self._first - self._start,
            peak_memory=mx.get_peak_memory() / 1e9,
            logprob=pick.logprob,
            top_logprobs=self._alternatives(pick),
        )

    def _alternatives(self, pick: Pick) -> list[Alternative] | None:
        found = pick.alternatives
        if found is None:
            return None
        return [Alternative(token, self._processor.decode([token]), logprob) for token, logprob in found]
