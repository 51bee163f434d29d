"""Prompts on their way into the decoder: images through the tower in small groups, then tokens in pieces."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..cache.kv import KVCache
from ..cache.parameters import Parameters, parameters_of
from ..cache.prefix import PrefixCache
from ..cache.prompt import PromptCache
from .decoding import read_piece
from .sampling import choose

if TYPE_CHECKING:
    from ..cache.vision import VisionCache
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .options import GenerationOptions
    from .row import Row

# Prompts are read together if padding them to one length makes at most so many times as many tokens.
ALIKE = 1.25


def images_together(processor: FastVlmProcessor, options: GenerationOptions) -> int:
    """How many images go through the tower at once: small ones may take the memory of one of the checkpoint's size."""
    if options.vision_batch_size is not None:
        return options.vision_batch_size
    size = processor.check_image_size(options.image_size)
    return max(1, (processor.image_settings.size // size) ** 2)


class PromptReader:
    """Reads prompts for the rows of an engine, a piece at a time.

    Features of images are kept while a row waits for them, so that each image of prompts that come together is encoded
    once.
    """

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        step_size: int,
        vision_cache: VisionCache | None,
        prefix_cache: PrefixCache | None,
    ) -> None:
        self._model, self._processor, self._step_size = model, processor, step_size
        self._vision_cache, self._prefix_cache = vision_cache, prefix_cache
        self._features: dict[str, mx.array] = {}
        self._features_of: tuple[Parameters, Parameters] | None = None

    def _encoder(self) -> tuple[Parameters, Parameters]:
        """What features depend on beside the image: not on the name of a checkpoint, and not on the decoder."""
        return parameters_of(self._model.vision_tower), parameters_of(self._model.multi_modal_projector)

    def _cache_of(self, row: Row) -> VisionCache | None:
        own = row.options.vision_cache
        return self._vision_cache if own is None else own

    def begin(self, row: Row) -> None:
        """Take up a row's prompt, and what is known of it already."""
        prefixes = self._prefixes_for(row)
        if row.shared is not None and row.shared.contents is not None:
            row.cache, row.shared = row.shared.cache(row.cache.policy), None
        elif prefixes is not None:
            found = prefixes.find(self._model, row.tokens)
            row.cache = row.cache if found is None else PromptCache.from_policy(row.cache.policy, found)
        row.begin(self._model)
        self._look_up(row)

    def begin_again(self, row: Row) -> None:
        """The same after an interrupt."""
        row.begin_again(self._model)
        self._look_up(row)

    def _prefixes_for(self, row: Row) -> PrefixCache | None:
        return self._prefix_cache if row.shares and PrefixCache.serves(row.cache.policy) else None

    def _remember(self, row: Row, caches: list[Any]) -> None:
        """Let other rows with this prompt, or one that begins like it, go on from its keys and values."""
        shared, row.shared = row.shared, None
        parameters = row.cache.parameters
        if row.said or parameters is None:  # it goes on after an interrupt, or was reset meanwhile
            return
        if shared is not None:
            shared.was_read(self._model, row.tokens, caches, parameters)
        prefixes = self._prefixes_for(row)
        if prefixes is not None:
            prefixes.put(self._model, row.tokens, caches, parameters)

    def _look_up(self, row: Row) -> None:
        cache = self._cache_of(row)
        if cache is None and not self._features:
            return
        encoder = self._encoder()
        if self._features_of != encoder:
            self._features = {}
        if cache is None:
            return
        for name in dict.fromkeys(image.fingerprint for image in row.images):
            if name not in self._features:
                found = cache.get((encoder, name))
                if found is not None:
                    self._features[name], self._features_of = found, encoder

    def lacks_features(self, row: Row) -> bool:
        return row.embeddings is None and any(image.fingerprint not in self._features for image in row.images)

    def may_be_early(self, row: Row) -> bool:
        """Whether a row that has not begun is known to need all of its images."""
        return row.shares and self._prefix_cache is None and self._cache_of(row) is None

    def encode(self, rows: list[Row]) -> None:
        """Encode a few of the images that the first row lacks, and with them others' of their size that fit in."""
        first = rows[0]
        missing = {image.fingerprint: image for row in rows for image in row.unread_images}
        missing = {name: image for name, image in missing.items() if name not in self._features}
        shape = next(iter(missing.values())).pixels.shape
        names = [name for name, image in missing.items() if image.pixels.shape == shape]
        names = names[: images_together(self._processor, first.options)]
        pixels = self._processor.to_pixel_values(np.stack([missing[name].pixels for name in names]))
        encoded = self._model.get_image_features(pixels)
        found = {name: mx.contiguous(features) for name, features in zip(names, encoded)}
        mx.async_eval(list(found.values()))  # the decoder's work can be made ready meanwhile
        encoder = self._encoder()
        self._features |= found
        self._features_of = encoder
        for row in rows:
            if self._cache_of(row) is not None:
                of_row = found.keys() & {image.fingerprint for image in row.images}
                row.encoded |= {(encoder, name): found[name] for name in of_row}

    def put_features(self, row: Row) -> None:
        """Give the vision cache what was encoded for a row that has a token, so that all of it is computed."""
        cache = self._cache_of(row)
        if cache is not None:
            for key, features in row.encoded.items():
                cache.put(key, features)
            row.encoded = {}

    def keep_only(self, rows: list[Row]) -> None:
        """Forget features that none of these rows waits for."""
        if self._features:
            wanted = {image.fingerprint for row in rows if row.embeddings is None for image in row.unread_images}
            self._features = {name: x for name, x in self._features.items() if name in wanted}

    def cost(self, row: Row) -> int:
        """How many tokens the row's next piece has."""
        return min(len(row.ids) - row.read, self._step_size, row.options.prefill_step_size)

    def read(self, row: Row) -> None:
        """Read a row's next piece, and after the last choose its first token."""
        self._embed(row)
        piece = row.next_piece(self.cost(row))
        with row.cache.growing(row.tokens) as caches:
            hidden = read_piece(self._model, piece, caches)
            ends = row.read + piece.shape[1] == len(row.ids)
            if not ends or row.options.progress is not None:
                mx.eval(hidden)
            if not ends:
                mx.clear_cache()
            row.was_read(piece.shape[1])
            if ends:
                (row.pick,) = choose([row.sampler], self._model.logits(hidden[:, -1]))
                self._remember(row, caches)

    def _embed(self, row: Row) -> None:
        if row.embeddings is None:
            features = [self._features[image.fingerprint] for image in row.images]
            row.embed(self._model, mx.stack(features) if features else None)

    def together(self, rows: list[Row], most: int) -> list[Row]:
        """Those of the rows, the first among them, whose whole prompts can be read in one call of ``most`` tokens."""
        group: list[Row] = []
        total = longest = 0
        for row in rows:
            length = len(row.ids) - row.read
            whole = row.read == 0 and row.embeddings is None and length <= self.cost(row)
            plain = row.shares and row.cache.kv_bits is None and row.options.progress is None
            if not (whole and plain) or self.lacks_features(row):
                if not group:
                    return [row]
                continue
            padded = (len(group) + 1) * max(longest, length)
            if group and padded > min(most, ALIKE * (total + length)):
                continue
            group.append(row)
            total, longest = total + length, max(longest, length)
        return group

    def read_together(self, rows: list[Row]) -> None:
        """Read whole prompts in one call, padded on the right: a token sees what is before it, so no mask is needed."""
        for row in rows:
            self._embed(row)
        pieces: list[Any] = [row.embeddings for row in rows]
        lengths = [piece.shape[1] for piece in pieces]
        longest = max(lengths)
        batch = mx.concatenate([mx.pad(x, [(0, 0), (0, longest - x.shape[1]), (0, 0)]) for x in pieces])
        shared = [KVCache() for _ in self._model.language_model.layers]
        hidden = read_piece(self._model, batch, shared)
        ends = hidden[mx.arange(len(rows)), mx.array(lengths) - 1]
        with contextlib.ExitStack() as lent:
            for i, row in enumerate(rows):
                caches = lent.enter_context(row.cache.growing(row.tokens))
                for own, cache in zip(caches, shared):
                    assert cache.keys is not None
                    assert cache.values is not None
                    part = slice(i, i + 1), slice(None), slice(lengths[i])
                    own.update_and_fetch(cache.keys[part], cache.values[part])
                self._remember(row, caches)
            picks = choose([row.sampler for row in rows], self._model.logits(ends))
        for row, pick, length in zip(rows, picks, lengths):
            row.was_read(length)
            row.pick = pick
