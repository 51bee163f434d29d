"""Images -> ``pixel_values``, messages -> token ids: what transformers' processor does, without transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from ..config import FastVlmConfig, check_keys
from ..errors import UsageError
from ..files import read_optional_json
from ..hub import find_checkpoint
from ..keywords import knows_habits
from .encoding import PromptEncoder
from .habits import DECODING, ENCODING, LOADING, TEMPLATE
from .images import iter_frames
from .marks import IMAGE_MARK, PlainText
from .messages import Messages, check_marks, content_parts, is_image, read_prompt
from .prepared import Image, ImageSettings
from .preprocess import MAX_IMAGE_SIZE, make_image
from .provenance import Author, Piece, concatenated, written_by
from .saving import write_processor
from .settings import read_image_settings
from .template import DEFAULT_TEMPLATE, compile_template, read_template
from .tokenizer import (
    Detokenizer,
    check_image_token,
    read_eos_token_ids,
    read_special_tokens,
    read_tokenizer,
    token_bytes,
    token_content,
)
from .video import iter_video

if TYPE_CHECKING:
    from .images import ImageSource
    from .video import VideoSource

# The longest tokens of Qwen2's vocabulary are runs of 128 spaces; prose has about four characters a token.
CHARACTERS_PER_TOKEN = 64
MIN_CHARACTERS = 2**20  # a bounded cache may read more than a model has positions


@dataclass(repr=False)
class FastVlmProcessor:
    """Tokenizer, chat template and image settings of a checkpoint.

    Attributes:
        tokenizer: a ``tokenizers.Tokenizer``.
        image_token_id: the id that stands for one image token in ``input_ids``.
        eos_token_ids: every id that ends an answer.
        pad_token_id: fills short rows of a batch.
        image_settings: see :class:`ImageSettings`.
        chat_template: jinja source, of which :mod:`.jinja` renders what is harmless.
        special_tokens: ``bos_token`` and its like, as templates call them, with their texts.
        max_characters: of a prompt; more are refused before they are tokenized, since no model has as many positions.
        max_pixels: of an image or a video's frame as it comes; larger ones are refused before they are decoded. None is
            the library's own limit, ``processing.images.MAX_PIXELS``.
    """

    tokenizer: Tokenizer
    image_token_id: int
    eos_token_ids: frozenset[int]
    pad_token_id: int = 0
    image_settings: ImageSettings = field(default_factory=ImageSettings)
    chat_template: str = DEFAULT_TEMPLATE
    special_tokens: dict[str, str] = field(default_factory=dict)
    max_characters: int = CHARACTERS_PER_TOKEN * 32768
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        self._encoder = PromptEncoder(self.tokenizer, self.eos_token_ids, self.chat_template)

    def __repr__(self) -> str:
        settings = self.image_settings
        return (
            f"FastVlmProcessor({self.tokenizer.get_vocab_size()} tokens, images {settings.aspect_ratio} to "
            f"{settings.size} x {settings.size} pixels, {self.num_image_tokens()} tokens each)"
        )

    @classmethod
    def from_folder(cls, folder: str | Path, config: FastVlmConfig) -> FastVlmProcessor:
        """Read tokenizer, template and image settings from a checkpoint's folder."""
        folder = Path(folder)
        settings = read_optional_json(folder / "tokenizer_config.json")
        whole = read_optional_json(folder / "processor_config.json")
        tokenizer = read_tokenizer(folder, settings)
        generation = read_optional_json(folder / "generation_config.json")
        check_keys("tokenizer_config.json", settings)
        check_keys("generation_config.json", generation)
        try:
            processor = cls(
                tokenizer,
                config.image_token_id,
                read_eos_token_ids(tokenizer, config, settings, generation),
                tokenizer.token_to_id(token_content(settings.get("pad_token")) or "<|endoftext|>") or 0,
                read_image_settings(folder, whole, config),
                read_template(folder, settings, whole),
                read_special_tokens(folder, settings),
                max(MIN_CHARACTERS, CHARACTERS_PER_TOKEN * config.text_config.max_position_embeddings),
            )
            check_image_token(
                processor.tokenizer, config.image_token_id, processor.eos_token_ids, processor.chat_template
            )
            return processor
        except (TypeError, AttributeError, KeyError, OverflowError) as error:  # a list for a word, and such
            raise ValueError(f"The tokenizer or processor files in {folder} are malformed ({error}).") from None

    @classmethod
    @knows_habits(LOADING)
    def from_pretrained(cls, path_or_repo: str | Path, *, revision: str | None = None) -> FastVlmProcessor:
        """The processor of a folder, a hub id or "demo"; of a hub repository no weights are downloaded.

        Raises:
            FileNotFoundError, OSError, ValueError: as for :func:`mlx_fastvlm.load`.
        """
        folder = find_checkpoint(path_or_repo, revision, needed=("*.json", "merges.txt", "*.jinja"))
        return cls.from_folder(folder, FastVlmConfig.from_file(folder / "config.json"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer, template and image settings to a folder, which is made if there is none.

        The model's ``config.json`` has to be there too for :meth:`from_pretrained`; its ``save_pretrained`` writes it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_processor(folder, Tokenizer.from_str(self.tokenizer.to_str()), self, self.chat_template)

    # Images

    def preprocess(self, images: ImageSource | list[ImageSource], image_size: int | None = None) -> mx.array:
        """Images -> (images, size, size, 3), float32, RGB in [0, 1]; arguments as for :meth:`prepare`."""
        return self.to_pixel_values(np.stack([image.pixels for image in self.prepare(images, image_size)]))

    def prepare(self, images: ImageSource | list[ImageSource], image_size: int | None = None) -> list[Image]:
        """Images as the model will see them. They are sources of images themselves, and are then taken as they are.

        Args:
            images: one source or a list of them (see :func:`mlx_fastvlm.load_image`).
            image_size: side in pixels instead of the checkpoint's, a multiple of 64: fewer pixels, fewer tokens.
        """
        return [image for source in _as_list(images) for image in self.prepare_frames(source, 1, image_size)]

    def prepare_frames(self, source: ImageSource, frames: int = 1, image_size: int | None = None) -> list[Image]:
        """So many frames of an animation as :meth:`prepare` makes images, evenly spaced; a still image gives itself.

        One is held at its full size at a time, so that a file takes memory for its largest frame and not for all.
        """
        settings = self._settings(image_size)
        if isinstance(source, Image):
            return [make_image(source, settings)]
        # No loop, whose variable would hold a frame while the next one is decoded.
        return [*map(partial(make_image, settings=settings), iter_frames(source, frames, self.max_pixels))]

    def prepare_video(
        self, source: VideoSource, fps: float, max_frames: int, image_size: int | None = None
    ) -> list[tuple[float, Image]]:
        """Some frames of a video with their times in seconds; see :func:`mlx_fastvlm.load_video`.

        One is held at its full size at a time.
        """
        settings = self._settings(image_size)
        frames = iter_video(source, fps, max_frames, self.max_pixels)
        return [(time, make_image(frame, settings)) for time, frame in frames]

    def to_pixel_values(self, pixels: np.ndarray) -> mx.array:
        """(images, size, size, 3), uint8 -> the same shape, float32, in [0, 1]."""
        settings = self.image_settings
        # One byte a channel goes to the device; dividing there gives the same floats as the reference.
        if settings.rescale_factor == 1 / 255:
            values = mx.array(pixels).astype(mx.float32) / 255
        else:
            levels = (np.arange(256) * settings.rescale_factor).astype(np.float32)
            values = mx.take(mx.array(levels), mx.array(pixels))
        if settings.mean != (0.0, 0.0, 0.0) or settings.std != (1.0, 1.0, 1.0):
            values = (values - mx.array(settings.mean)) / mx.array(settings.std)
        return values

    def _settings(self, image_size: int | None) -> ImageSettings:
        return replace(self.image_settings, size=self.check_image_size(image_size))

    def check_image_size(self, image_size: int | None) -> int:
        """``image_size``, or the checkpoint's own for None; ``ValueError`` where the tower can't take it."""
        size = self.image_settings.size if image_size is None else image_size
        patch = self.image_settings.patch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < patch or size % patch:
            raise UsageError(f"image_size must be a multiple of {patch} pixels, got {size!r}.")
        if size > MAX_IMAGE_SIZE:
            raise UsageError(f"image_size must be at most {MAX_IMAGE_SIZE} pixels, got {size}.")
        return size

    def num_image_tokens(self, image_size: int | None = None) -> int:
        """Tokens of one image: 256 at 1024 pixels."""
        return (self.check_image_size(image_size) // self.image_settings.patch_size) ** 2

    # Text

    @knows_habits(TEMPLATE)
    def apply_chat_template(
        self,
        messages: Messages | list[Messages],
        add_generation_prompt: bool = True,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        image_size: int | None = None,
        padding_side: str = "left",
    ) -> Any:
        """Messages -> the prompt as text, one ``<image>`` for each image; or token ids, or the model's inputs.

        Args:
            messages: dicts of ``role`` and ``content``; the content is a string, which may hold ``<image>`` marks, or
                a list of parts: ``{"type": "text", "text": ...}`` and ``{"type": "image"}`` (or OpenAI's
                ``"image_url"``; where an image comes from matters with ``return_dict`` only). Or several such
                conversations, for one prompt each.
            add_generation_prompt: end with the beginning of an answer; transformers' default is not to.
            tokenize: return token ids, as :meth:`encode_chat` gives them.
            return_dict: with ``tokenize``, return what :meth:`__call__` returns, the messages' own images among it.
            image_size, padding_side: see :meth:`__call__`.

        Raises:
            ValueError: for ``return_dict`` without ``tokenize``, malformed messages, or an image without a source.
        """
        several = bool(messages) and isinstance(messages[0], list)
        chats: Any = messages if several else [messages]
        if return_dict and not tokenize:
            raise UsageError("return_dict gives token ids and pixels; add tokenize=True.")
        if not return_dict:
            make: Any = partial(self.encode_chat, image_size=image_size) if tokenize else self._prompt_text
            made = [make(chat, add_generation_prompt) for chat in chats]
            return made if several else made[0]
        read = [read_prompt(chat, None, lambda source: self.prepare(source, image_size)) for chat in chats]
        rows = [self.encode_chat(chat, add_generation_prompt, image_size) for chat, _ in read]
        inputs = self.pad(rows, padding_side)
        images = [image for _, found in read for image in found]
        if images:
            inputs["pixel_values"] = self.preprocess(images, image_size)
        return inputs

    def _prompt_text(self, messages: Messages, add_generation_prompt: bool) -> str:
        return "".join(piece.text for piece in self._render(messages, add_generation_prompt))

    def encode(self, text: str, image_size: int | None = None) -> list[int]:
        """A prompt's token ids. Special tokens in it count as such; each ``<image>`` becomes an image's tokens."""
        return self._ids([Piece(text, Author.TEMPLATE)], image_size)

    def encode_chat(
        self, messages: Messages, add_generation_prompt: bool = True, image_size: int | None = None
    ) -> list[int]:
        """Messages -> token ids.

        Unlike :meth:`encode` of :meth:`apply_chat_template`'s text, what the messages say is never taken for special
        tokens: a user who types ``<|im_end|>`` ends no turn. ``<image>`` is still a mark.
        """
        return self._ids(self._render(messages, add_generation_prompt), image_size)

    def encode_answer(self, text: str) -> list[int]:
        """The token ids of a text that an answer begins with; nothing in it is a special token or a mark."""
        return self._ids([Piece(text, Author.MODEL)], None)

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to a text, which may be part of a character; b"" for special tokens."""
        return token_bytes(self.tokenizer, id)

    @knows_habits(DECODING)
    def decode(self, ids: Iterable[int] | mx.array, skip_special_tokens: bool = True) -> str:
        """Token ids, a list or an array of one dimension -> text. Image placeholders are left out."""
        listed: Any = ids.tolist() if isinstance(ids, mx.array) else ids
        shown = [id for id in listed if id != self.image_token_id]
        return self.tokenizer.decode(shown, skip_special_tokens=skip_special_tokens)

    @knows_habits(DECODING)
    def batch_decode(self, rows: Iterable[Iterable[int]] | mx.array, skip_special_tokens: bool = True) -> list[str]:
        """The text of each row, as :meth:`decode` gives it."""
        listed: Any = rows.tolist() if isinstance(rows, mx.array) else rows
        return [self.decode(row, skip_special_tokens) for row in listed]

    def detokenizer(self) -> Detokenizer:
        """For streaming: text piece by piece, never half a character."""
        return Detokenizer(self.tokenizer)

    @knows_habits(ENCODING)
    def __call__(
        self,
        text: str | list[str] | None = None,
        images: ImageSource | list[ImageSource] | list[list[ImageSource]] | None = None,
        padding_side: str = "left",
        image_size: int | None = None,
    ) -> dict[str, mx.array]:
        """Prompts and images -> the model's inputs.

        Args:
            text: one prompt or several, with an ``<image>`` for each image.
            images: the images of all prompts, in reading order; or a list for each prompt.
            padding_side: where short rows are filled: "left", so that all rows end together, or "right".
            image_size: see :meth:`preprocess`.

        Returns:
            ``input_ids`` and ``attention_mask``, both (prompts, length), int32, and ``pixel_values``,
            (images, size, size, 3), float32; without text or without images, only the other.

        Raises:
            ValueError: where marks and images differ in number.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}.")
        images = [] if images is None else _as_list(images)
        nested = any(isinstance(image, (list, tuple)) for image in images)
        flat = [image for some in images for image in _as_list(some)] if nested else images
        inputs: dict[str, mx.array] = {}
        if text is not None:
            prompts = [text] if isinstance(text, str) else text
            if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
                raise ValueError("text must be prompts; make them of messages with apply_chat_template.")
            rows = [self.encode(prompt, image_size) for prompt in prompts]
            marks = [row.count(self.image_token_id) // self.num_image_tokens(image_size) for row in rows]
            if nested and len(images) != len(rows):
                raise ValueError(f"There are {len(images)} lists of images for {len(rows)} prompts; give one for each.")
            for count, some in zip(marks, images) if nested else [(sum(marks), flat)]:
                check_marks(count, len(_as_list(some)))
            inputs |= self.pad(rows, padding_side)
        images = flat
        if images:
            inputs["pixel_values"] = self.preprocess(images, image_size)
        return inputs

    def pad(self, rows: list[list[int]], padding_side: str = "left") -> dict[str, mx.array]:
        """Rows of ids -> ``input_ids`` and ``attention_mask``, both (rows, longest), int32."""
        longest = max(map(len, rows))
        input_ids = np.full((len(rows), longest), self.pad_token_id, np.int32)
        mask = np.zeros((len(rows), longest), np.int32)
        for i, row in enumerate(rows):
            where = slice(longest - len(row), longest) if padding_side == "left" else slice(len(row))
            input_ids[i, where] = row
            mask[i, where] = 1
        return {"input_ids": mx.array(input_ids), "attention_mask": mx.array(mask)}

    def _render(self, messages: Messages, add_generation_prompt: bool) -> Iterable[Piece]:
        """The template's output, in pieces of those who wrote them."""
        template = compile_template(self.chat_template, tuple(sorted(self.special_tokens.items())))
        prepared: list[dict[str, Any]] = []
        for message in messages:
            if isinstance(message, list):
                raise ValueError("These are several conversations; give one at a time.")
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError('A message must be a dict with "role" and "content".')
            if not isinstance(message["role"], str) or not re.fullmatch(r"[A-Za-z_-]{1,32}", message["role"]):
                raise ValueError("A message's role must be one word, such as user; the rest belongs in its content.")
            # Nothing else of a message reaches the template, which could put it outside the user's words.
            prepared.append({"role": message["role"], "content": content_parts(message["content"])})
        self._check_length(part["text"] for message in prepared for part in message["content"] if not is_image(part))
        for message in prepared:
            message["content"] = (_parts if template.wants_parts else _text)(message["content"])
        return template.render(prepared, add_generation_prompt)

    def _ids(self, pieces: Iterable[Piece], image_size: int | None) -> list[int]:
        pieces = list(pieces)
        self._check_length(piece.text for piece in pieces)
        placeholders = [self.image_token_id] * self.num_image_tokens(image_size)
        ids: list[int] = []
        for id in self._encoder.encode(pieces):
            if id is None:
                ids += placeholders
            elif id != self.image_token_id:  # which stands for images alone: a model that says it shows none
                ids.append(id)
        return ids

    def _check_length(self, texts: Iterable[str]) -> None:
        """``ValueError`` for texts that no model could read, before time is taken for them."""
        length = sum(map(len, texts))
        if length > self.max_characters:
            raise ValueError(
                f"The prompt has {length} characters, more than the model can read ({self.max_characters} at most); "
                "shorten it."
            )


def _said(text: str) -> str:
    return written_by(Author.MODEL if isinstance(text, PlainText) else Author.USER, text)


def _parts(parts: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A message's content as templates see it that want parts."""
    return [{"type": "image"} if is_image(part) else {"type": "text", "text": _said(part["text"])} for part in parts]


def _text(parts: list[dict[str, Any]]) -> str:
    """A message's content as other templates see it: marks and texts on lines of their own."""
    lines = [IMAGE_MARK if is_image(part) else part["text"] for part in parts]
    broken = [_said(text) for line in lines for text in ("\n", line)]
    return concatenated(broken[1:])


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
