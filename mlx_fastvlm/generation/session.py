"""Conversations: a session that computes nothing twice."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from ..cache.prompt import PromptCache, StaleCache
from ..cache.vision import VisionCache
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..processing.images import ImageSource
from ..processing.messages import Answer, Messages, read_prompt
from ..processing.processor import FastVlmProcessor
from .api import GenerationResponse, stream_generate
from .options import GenerationOptions


class ChatSession:
    """A conversation about pictures that keeps its KV cache: a follow-up costs its own tokens only.

    Args:
        system: a system prompt instead of the template's own.
        options: see :class:`mlx_fastvlm.GenerationOptions`. With ``max_kv_size``, the system prompt and the first
            question with its pictures stay in the cache, and of the rest the latest.

    Attributes:
        messages: what was said so far, with a mark for each picture.
        pictures: (size, size, 3), uint8, in reading order, as the model sees them.
        frames: how many frames of an animation become pictures.
        cache: the prompt cache. ``save_prompt_cache`` writes it.
    """

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        system: str | None = None,
        **options,
    ):
        chosen = GenerationOptions(**options)
        chosen.check(model)
        self._model, self._processor, self._system = model, processor, system
        max_kv_size, kv_bits = (options.pop(name, None) for name in ("max_kv_size", "kv_bits"))
        group_size = options.pop("kv_group_size", 64)
        self.cache = options.pop("prompt_cache", None) or PromptCache(max_kv_size, kv_bits, group_size)
        self._options = {"vision_cache": VisionCache(), **options}
        self.frames = self._options.pop("frames", 1)
        self.reset()

    def reset(self):
        """Begin a new conversation. Features of pictures are kept, in case they come again."""
        self.messages: Messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.pictures: list[Any] = []

    def ask(self, text: str, image: ImageSource | list[ImageSource] | None = None) -> str:
        """The whole answer to the next question; arguments as for :meth:`stream`."""
        return "".join(response.text for response in self.stream(text, image))

    def stream(
        self, text: str, image: ImageSource | list[ImageSource] | None = None
    ) -> Generator[GenerationResponse, None, None]:
        """Answer the next question, token by token.

        If the stream is left before its end, what was said until then counts as the answer.

        Args:
            image: new pictures for this question; those of earlier ones are known.

        Raises:
            ValueError, OSError: for a bad picture, before anything runs; the conversation is then as it was.
        """
        question, new = read_prompt(text, image, frames=self.frames)
        squares = list(self._processor.squares(new, self._options.get("image_size"))) if new else []
        messages, pictures = self.messages + question, self.pictures + squares
        try:
            responses = self._generate(messages, pictures)
        except StaleCache:  # after an answer cut short, in a bounded cache: read the conversation again
            self.cache.reset(self.cache.keep if self._has_begun else 0)
            responses = self._generate(messages, pictures)
        return self._remember(responses, messages, pictures)

    @property
    def _has_begun(self) -> bool:
        return any(message["role"] == "assistant" for message in self.messages)

    def _generate(self, messages: Messages, pictures: list[Any]) -> Iterator[GenerationResponse]:
        return stream_generate(
            self._model, self._processor, messages, pictures, prompt_cache=self.cache, **self._options
        )

    def _remember(
        self, responses: Iterator[GenerationResponse], messages: Messages, pictures: list[Any]
    ) -> Generator[GenerationResponse, None, None]:
        text, ids, response = "", [], None
        try:
            for response in responses:
                text += response.text
                ids.append(response.token)
                yield response
        finally:
            if response is not None:
                if ids[-1] in self._processor.eos_token_ids:
                    ids.pop()  # the template ends the turn
                elif response.finish_reason == "stop":  # what a stop string cut off was never said
                    ids = self._processor.tokenizer.encode(text, add_special_tokens=False).ids
                self.messages = [*messages, {"role": "assistant", "content": Answer(text, ids)}]
                self.pictures = pictures
