"""A prompt and its images, ready for the model: everything that can be wrong with them is found here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..cache.tokens import Token, mark_images
from ..processing.messages import Prompt, read_prompt, with_video

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.prepared import Image
    from ..processing.processor import FastVlmProcessor
    from .constraints import Grammar
    from .options import GenerationOptions


@dataclass
class Request:
    """A prompt's token ids and images.

    Attributes:
        ids: token ids, every image token as the placeholder.
        images: as the model sees them, in reading order.
        tokens_per_image: image tokens of each.
        placeholder: the id that stands for an image token.
        grammar: what the answer must be, if anything.
    """

    ids: list[int]
    images: list[Image]
    tokens_per_image: int
    placeholder: int
    grammar: Grammar | None = None

    def check(self, model: FastVlmForConditionalGeneration, bounded: bool = False) -> None:
        """``ValueError`` for a prompt that the model can't read.

        Args:
            bounded: whether a cache forgets what is old: then a conversation may outgrow the model's positions.
        """
        most = model.config.text_config.max_position_embeddings
        if len(self.ids) > most and not bounded:
            raise ValueError(
                f"The prompt has {len(self.ids)} tokens, images included, and the model was made for {most}; shorten "
                "it, take a smaller image_size, or begin a new conversation."
            )
        if len(self.ids) == 0:
            raise ValueError("The checkpoint's chat template makes nothing of the prompt; don't trust this checkpoint.")
        shown = self.ids.count(self.placeholder) // self.tokens_per_image
        if shown != len(self.images):
            raise ValueError(
                f"The checkpoint's chat template shows {shown} images for the {len(self.images)} of the prompt; "
                "correct it, so that each is there once."
            )
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
        """The ids as a prompt cache compares them; a new list at each call."""
        fingerprints = [image.fingerprint for image in self.images]
        return mark_images(self.ids, self.placeholder, fingerprints, self.tokens_per_image)

    def images_behind(self, count: int) -> list[Image]:
        """The images that are not among the first ``count`` tokens; none is there in part."""
        return self.images[self.ids[:count].count(self.placeholder) // self.tokens_per_image :]


def make_request(
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None,
    options: GenerationOptions,
) -> Request:
    """Read a prompt and open its images; errors as for :func:`mlx_fastvlm.processing.messages.read_prompt`."""
    size = processor.check_image_size(options.image_size)
    if options.video is not None:
        prompt = with_video(prompt, processor.prepare_video(options.video, options.fps, options.max_frames, size))
    messages, images = read_prompt(
        prompt, image, lambda source: processor.prepare_frames(source, options.frames, size), options.system
    )
    ids = processor.encode_chat(messages, image_size=size)
    return Request(ids, images, processor.num_image_tokens(size), processor.image_token_id)
