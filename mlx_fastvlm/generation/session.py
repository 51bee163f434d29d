"""Conversations: a session that computes nothing twice."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..cache.prompt import PromptCache, StaleCache
from ..cache.vision import VisionCache
from ..errors import UsageError
from ..processing.marks import AnswerText
from ..processing.messages import Messages, read_prompt
from .api import Responses, stream_answer
from .options import GenerationOptions, SessionOptions, lists_options_but_video

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.prepared import Image
    from ..processing.processor import FastVlmProcessor
    from .answer import GenerationResponse


@dataclass(frozen=True, eq=False)
class Conversation:
    """What was said and shown. A session replaces it as a whole, so that nothing ever sees half of a change."""

    messages: Messages
    images: list[Image]


class ChatSession:
    """A conversation about images that keeps its KV cache: a follow-up costs its own tokens only.

    One question is answered at a time. A stream that another question, or :meth:`reset`, has overtaken can't go on, and
    leaves nothing in the conversation.

    Args:
        system: a system prompt instead of the template's own.
        options: see :class:`mlx_fastvlm.GenerationOptions`. With ``max_kv_size``, the system prompt and the first
            question with its images stay in the cache, and of the rest the latest.

    Attributes:
        frames: how many frames of an animation become images.
        cache: the prompt cache. ``save_prompt_cache`` writes it.
    """

    @lists_options_but_video
    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        system: str | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        self._set_up(model, processor, GenerationOptions(system=system, **options))

    @classmethod
    def from_options(
        cls, model: FastVlmForConditionalGeneration, processor: FastVlmProcessor, options: GenerationOptions
    ) -> ChatSession:
        """A session for whoever holds the options already."""
        session = cls.__new__(cls)
        session._set_up(model, processor, options)
        return session

    def _set_up(
        self, model: FastVlmForConditionalGeneration, processor: FastVlmProcessor, options: GenerationOptions
    ) -> None:
        options.check(model)
        if options.video is not None:
            raise UsageError("A conversation takes no video; show it the images that load_video gives.")
        self._model, self._processor, self._system = model, processor, options.system
        self.frames = options.frames
        given, seen = options.prompt_cache, options.vision_cache
        self.cache = PromptCache.from_policy(options.cache_policy) if given is None else given
        self._options = replace(
            options,
            system=None,  # the messages begin with it
            prompt_cache=self.cache,
            max_kv_size=None,
            kv_bits=None,
            vision_cache=VisionCache() if seen is None else seen,
        )
        self._lock = threading.RLock()  # of the two below; an interrupt must not lock its own thread out
        self._answering: object = None  # the stream that will add to the conversation
        self.reset()

    def __repr__(self) -> str:
        said = sum(message["role"] != "system" for message in self.messages)
        return f"ChatSession({said} messages, {len(self.images)} images, {self.cache.offset} tokens in the cache)"

    @property
    def messages(self) -> Messages:
        """What was said so far, with a mark for each image."""
        return self._conversation.messages

    @property
    def images(self) -> list[Image]:
        """The images shown so far, in reading order, as the model sees them."""
        return self._conversation.images

    def reset(self) -> None:
        """Begin a new conversation. Features of images are kept, in case they come again."""
        messages: Messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        with self._lock:
            self._answering, self._conversation = None, Conversation(messages, [])

    def prepare(self, source: ImageSource) -> list[Image]:
        """An image for a question, opened now: one, or ``frames`` of an animation. Errors as for ``load_image``."""
        return self._processor.prepare_frames(source, self.frames, self._options.image_size)

    def ask(self, text: str, image: ImageSource | list[ImageSource] | None = None) -> str:
        """The whole answer to the next question; arguments as for :meth:`stream`."""
        return "".join(response.text for response in self.stream(text, image))

    def stream(self, text: str, image: ImageSource | list[ImageSource] | None = None) -> Responses:
        """Answer the next question, token by token.

        If the stream is left before its end, what was said until then counts as the answer.

        Args:
            image: new images for this question; those of earlier ones are known.

        Raises:
            ValueError, OSError: for a bad image, before anything runs; the conversation is then as it was.
        """
        before = self._conversation
        question, new = read_prompt(text, image, self.prepare)
        asked = Conversation(before.messages + question, before.images + new)
        try:
            responses = self._begin(asked)
        except StaleCache:  # after an answer cut short, in a bounded cache: read the conversation again
            self.cache.drop()
            responses = self._begin(asked)
        return self._remember(responses, before, asked)

    def _begin(self, asked: Conversation) -> Responses:
        return stream_answer(self._model, self._processor, asked.messages, [*asked.images], self._options)

    def _remember(self, responses: Responses, before: Conversation, asked: Conversation) -> Responses:
        """Pass an answer on, and add it to the conversation when it ends, unless that has gone on without it."""
        said: list[GenerationResponse] = []
        with self._lock:
            if self._conversation is not before:
                raise ValueError("The conversation has gone on since this question was asked; ask it again.")
            self._answering = said
        try:
            for response in responses:
                said.append(response)
                yield response
        finally:
            after = self._with_answer(asked, said) if said else before
            with self._lock:
                if self._answering is said:
                    self._answering, self._conversation = None, after

    def _with_answer(self, asked: Conversation, said: list[GenerationResponse]) -> Conversation:
        text, ids = "".join(response.text for response in said), [response.token for response in said]
        if ids[-1] in self._processor.eos_token_ids:
            ids.pop()  # the template ends the turn
        elif said[-1].finish_reason == "stop":  # what a stop string cut off was never said
            ids = self._processor.tokenizer.encode(text, add_special_tokens=False).ids
        return Conversation([*asked.messages, {"role": "assistant", "content": AnswerText(text, ids)}], asked.images)
