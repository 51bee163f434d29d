"""A prompt and its pictures, ready for the model: everything that can be wrong with them is found here."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..cache.prompt import Token, mark_images
from ..cache.vision import encode_images
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..processing.images import ImageSource
from ..processing.messages import Prompt, read_prompt
from ..processing.preprocess import image_fingerprint
from ..processing.processor import FastVlmProcessor
from .options import GenerationOptions


@dataclass
class Request:
    """A prompt's token ids and pictures.

    Attributes:
        ids: token ids, every image token as the placeholder.
        squares: (pictures, size, size, 3), uint8, in reading order.
        tokens_per_image: image tokens of each.
        placeholder: the id that stands for an image token.
        fingerprints: what each picture is recognised by.
    """

    ids: list[int]
    squares: np.ndarray
    tokens_per_image: int
    placeholder: int
    fingerprints: list[str]

    def check(self, model: FastVlmForConditionalGeneration, bounded: bool = False):
        """``ValueError`` for a prompt that the model can't read.

        Args:
            bounded: whether a cache forgets what is old: then a conversation may outgrow the model's positions.
        """
        most = model.config.text_config.max_position_embeddings
        if len(self.ids) > most and not bounded:
            raise ValueError(
                f"The prompt has {len(self.ids)} tokens, pictures included, and the model was made for {most}; shorten "
                "it, take a smaller image_size, or begin a new conversation."
            )
        if len(self.ids) == 0:
            raise ValueError("The checkpoint's chat template makes nothing of the prompt; don't trust this checkpoint.")
        size = model.config.text_config.vocab_size
        beyond = next((id for id in self.text_ids if not 0 <= id < size), None)
        if beyond is not None:
            raise ValueError(
                f"The tokenizer gives the token {beyond}, and the model has {size}; download the checkpoint again."
            )

    @property
    def text_ids(self) -> list[int]:
        """The ids without placeholders, which may be no ids of the vocabulary, or another token's."""
        return [id for id in self.ids if id != self.placeholder]

    @property
    def tokens(self) -> list[Token]:
        """The ids as a prompt cache compares them."""
        return mark_images(self.ids, self.placeholder, self.fingerprints, self.tokens_per_image)

    def features(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        options: GenerationOptions,
        skip: int = 0,
    ) -> mx.array | None:
        """Features of the pictures behind the first ``skip`` tokens: (pictures, tokens, text hidden size), or None."""
        first = self.ids[:skip].count(self.placeholder) // self.tokens_per_image
        squares, names = self.squares[first:], self.fingerprints[first:]
        return encode_images(model, processor, squares, names, options.vision_batch_size, options.vision_cache)


def make_request(
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None,
    options: GenerationOptions,
) -> Request:
    """Read a prompt and open its pictures; errors as for :func:`mlx_fastvlm.messages.read_prompt`."""
    size = processor.check_image_size(options.image_size)
    messages, pictures = read_prompt(prompt, image, options.system, options.frames)
    ids = processor.encode_chat(messages, image_size=size)
    squares = processor.squares(pictures, size) if pictures else np.zeros((0, size, size, 3), np.uint8)
    settings = processor.image_settings
    names = [image_fingerprint(square, *settings.values) for square in squares]
    return Request(ids, squares, processor.num_image_tokens(size), processor.image_token_id, names)
