"""Images -> ``pixel_values``, messages -> token ids: what transformers' processor does, without transformers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer

from ..config import FastVlmConfig, check_keys
from ..errors import UsageError
from ..files import read_optional_json
from .images import ImageSource, load_image
from .messages import IMAGE_MARK, Answer, Messages, check_marks, content_parts, is_image
from .preprocess import MAX_IMAGE_SIZE, ImageSettings, read_image_settings, square
from .template import DEFAULT_TEMPLATE, compile_template, read_template
from .tokenizer import Detokenizer, check_image_token, read_eos_token_ids, read_tokenizer, token_content


@dataclass
class FastVlmProcessor:
    """Tokenizer, chat template and picture settings of a checkpoint.

    Attributes:
        tokenizer: a ``tokenizers.Tokenizer``.
        image_token_id: the id that stands for one image token in ``input_ids``.
        eos_token_ids: every id that ends an answer.
        pad_token_id: fills short rows of a batch.
        image_settings: see :class:`ImageSettings`.
        chat_template: jinja source, rendered in jinja2's sandbox.
    """

    tokenizer: Tokenizer
    image_token_id: int
    eos_token_ids: frozenset[int]
    pad_token_id: int = 0
    image_settings: ImageSettings = field(default_factory=ImageSettings)
    chat_template: str = DEFAULT_TEMPLATE

    def __post_init__(self):
        # Special tokens are recognised by _runs alone, in the template's text and never in a user's.
        self.tokenizer.encode_special_tokens = True
        # What ends a turn is special, whatever the files call it, or a user could type it.
        added = self.tokenizer.get_added_tokens_decoder()
        turns = [t for id, t in added.items() if id in self.eos_token_ids or t.content.startswith("<|")]
        self.tokenizer.add_special_tokens(
            [AddedToken(t.content, normalized=False, special=True) for t in turns if not t.special]
        )
        self._special = {
            token.content: id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special
        }

    @classmethod
    def from_folder(cls, folder: str | Path, config: FastVlmConfig) -> FastVlmProcessor:
        """Read tokenizer, template and picture settings from a checkpoint's folder."""
        folder = Path(folder)
        settings = read_optional_json(folder / "tokenizer_config.json")
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
                read_image_settings(read_optional_json(folder / "preprocessor_config.json"), config),
                read_template(folder, settings),
            )
            check_image_token(
                processor.tokenizer, config.image_token_id, processor.eos_token_ids, processor.chat_template
            )
            return processor
        except (TypeError, AttributeError, KeyError, OverflowError) as error:  # a list for a word, and such
            raise ValueError(f"The tokenizer or processor files in {folder} are malformed ({error}).") from None

    # Pictures

    def preprocess(self, images: ImageSource | list[ImageSource], image_size: int | None = None) -> mx.array:
        """Pictures -> (images, size, size, 3), float32, RGB in [0, 1]; arguments as for :meth:`squares`."""
        return self.to_pixel_values(self.squares(images, image_size))

    def squares(self, images: ImageSource | list[ImageSource], image_size: int | None = None) -> np.ndarray:
        """Pictures -> (images, size, size, 3), uint8, as the model will see them.

        Args:
            images: one source or a list of them (see :func:`mlx_fastvlm.load_image`).
            image_size: side in pixels instead of the checkpoint's, a multiple of 64: fewer pixels, fewer tokens.
        """
        settings = self.image_settings
        size = self.check_image_size(image_size)
        pictures = [square(load_image(image), size, settings.aspect_ratio) for image in _as_list(images)]
        return np.stack([np.asarray(picture) for picture in pictures])

    def to_pixel_values(self, squares: np.ndarray) -> mx.array:
        """(images, size, size, 3), uint8 -> the same shape, float32, in [0, 1]."""
        settings = self.image_settings
        # One byte a channel goes to the device; dividing there gives the same floats as the reference.
        pixels = mx.array(squares).astype(mx.float32) / 255
        if settings.mean != (0.0, 0.0, 0.0) or settings.std != (1.0, 1.0, 1.0):
            pixels = (pixels - mx.array(settings.mean)) / mx.array(settings.std)
        return pixels

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
        """Tokens of one picture: 256 at 1024 pixels."""
        return (self.check_image_size(image_size) // self.image_settings.patch_size) ** 2

    # Text

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """Messages -> the prompt as text, one ``<image>`` for each picture.

        Args:
            messages: dicts of ``role`` and ``content``; the content is a string, which may hold ``<image>`` marks, or
                a list of parts: ``{"type": "text", "text": ...}`` and ``{"type": "image"}`` (or OpenAI's
                ``"image_url"``; where a picture comes from does not matter here).
        """
        return "".join(text for text, _ in self._render(messages, add_generation_prompt))

    def encode(self, text: str, image_size: int | None = None) -> list[int]:
        """A prompt's token ids. Special tokens in it count as such; each ``<image>`` becomes a picture's tokens."""
        return self._ids([(text, True)], image_size)

    def encode_chat(
        self, messages: Messages, add_generation_prompt: bool = True, image_size: int | None = None
    ) -> list[int]:
        """Messages -> token ids.

        Unlike :meth:`encode` of :meth:`apply_chat_template`'s text, what the messages say is never taken for special
        tokens: a user who types ``<|im_end|>`` ends no turn. ``<image>`` is still a mark.
        """
        return self._ids(self._render(messages, add_generation_prompt), image_size)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Token ids -> text. Image placeholders are left out."""
        ids = [id for id in ids if id != self.image_token_id]
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self) -> Detokenizer:
        """For streaming: text piece by piece, never half a character."""
        return Detokenizer(self.tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: ImageSource | list[ImageSource] | None = None,
        padding_side: str = "left",
        image_size: int | None = None,
    ) -> dict[str, mx.array]:
        """Prompts and pictures -> the model's inputs.

        Args:
            text: one prompt or several, with an ``<image>`` for each picture.
            images: the pictures of all prompts, in reading order.
            padding_side: where short rows are filled: "left", so that all rows end together, or "right".
            image_size: see :meth:`preprocess`.

        Returns:
            ``input_ids`` and ``attention_mask``, both (prompts, length), int32, and ``pixel_values``,
            (images, size, size, 3), float32; without text or without pictures, only the other.

        Raises:
            ValueError: where marks and pictures differ in number.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}.")
        images = [] if images is None else _as_list(images)
        inputs: dict[str, mx.array] = {}
        if text is not None:
            rows = [self.encode(prompt, image_size) for prompt in ([text] if isinstance(text, str) else text)]
            marks = sum(row.count(self.image_token_id) for row in rows) // self.num_image_tokens(image_size)
            check_marks(marks, len(images))
            inputs |= self.pad(rows, padding_side)
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

    def _render(self, messages: Messages, add_generation_prompt: bool) -> list[tuple[str, bool]]:
        """The template's output in pieces: (text, whether the template wrote it).

        The template sees stand-ins for what the messages say, so its output tells the two apart.
        """
        render = compile_template(self.chat_template)
        nonce = secrets.token_hex(8)  # a message can't guess it
        said: list[str] = []

        def stand_in(text: str) -> str:
            said.append(text)
            return f"\ue000{nonce}:{len(said) - 1}\ue001"

        wants_parts = nonce not in render(messages=[{"role": "user", "content": nonce}], add_generation_prompt=False)
        prepared: list[dict[str, Any]] = []
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError('A message must be a dict with "role" and "content".')
            if not isinstance(message["role"], str) or not re.fullmatch(r"[A-Za-z_-]{1,32}", message["role"]):
                raise ValueError("A message's role must be one word, such as user; the rest belongs into its content.")
            parts = content_parts(message["content"])
            content: str | list[dict[str, Any]]
            if wants_parts:
                content = [
                    {"type": "image"} if is_image(p) else {"type": "text", "text": stand_in(p["text"])} for p in parts
                ]
            else:
                content = "\n".join(IMAGE_MARK if is_image(p) else stand_in(p["text"]) for p in parts)
            # Nothing else of a message reaches the template, which could put it outside the user's words.
            prepared.append({"role": message["role"], "content": content})
        rendered = render(messages=prepared, add_generation_prompt=add_generation_prompt)
        pieces = re.split(f"\ue000{nonce}:(\\d+)\ue001", rendered)
        if not all(int(piece) < len(said) for piece in pieces[1::2]):
            raise ValueError("The checkpoint's chat template makes messages up; don't trust this checkpoint.")
        return [(said[int(piece)], False) if i % 2 else (piece, True) for i, piece in enumerate(pieces)]

    def _ids(self, pieces: list[tuple[str, bool]], image_size: int | None) -> list[int]:
        placeholders = [self.image_token_id] * self.num_image_tokens(image_size)
        ids: list[int] = []
        for run in self._runs(pieces):
            if isinstance(run, _Plain):
                ids += self._encode_plain(run.text)
            elif isinstance(run, int):
                ids.append(run)
            else:
                ids += placeholders
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # bytes of a command line or a file name that are no UTF-8
            raise ValueError("A text holds characters that are not valid Unicode; give it as UTF-8.") from None

    def _runs(self, pieces: list[tuple[str, bool]]) -> Iterable[str | int | _Plain]:
        """Plain text, special token ids and image marks, in order.

        Plain text is joined over the borders of pieces, since a tokenizer may merge across them.
        """
        special = "|".join(re.escape(token) for token in sorted([*self._special, IMAGE_MARK], key=len, reverse=True))
        plain = ""
        for text, trusted in pieces:
            if isinstance(text, Answer):
                if plain:
                    yield _Plain(plain)
                    plain = ""
                yield from text.ids
                continue
            for i, part in enumerate(re.split(f"({special if trusted else re.escape(IMAGE_MARK)})", text)):
                if i % 2 == 0:
                    plain += part
                    continue
                if plain:
                    yield _Plain(plain)
                    plain = ""
                yield part if part == IMAGE_MARK else self._special[part]
        if plain:
            yield _Plain(plain)


@dataclass(frozen=True)
class _Plain:
    """Text without any special meaning, even if it looks like an image mark or a special token."""

    text: str


def _as_list(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
