"""A KV cache that outlives one answer: it knows which tokens and pictures it holds, so it is never used for others."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..errors import UsageError, require
from ..files import atomic_file, read_safetensors
from ..models.fastvlm import FastVlmModel
from .fingerprint import model_fingerprint
from .policy import check_capacity, make_cache

GROUP_SIZES = (32, 64, 128)  # that MLX can quantize in

# A text token is its id; the i-th token of a picture is (the picture's fingerprint, i).
Token = Any


class StaleCache(ValueError):
    """What a bounded cache has forgotten already can't be taken back, so another prompt can't use it."""


class PromptCache:
    """Keeps the KV cache from one call to the next.

    The prompt of a call is always the whole conversation. What it has in common with the tokens of the calls before,
    pictures by their pixels, is not computed again, and what differs is dropped. So a wrong prompt costs time and
    never gives a wrong answer. One answer uses it at a time: a later one takes it over, and the earlier can't go on.

    Args:
        max_kv_size: bounds the cache to so many tokens; the first prompt always stays in it.
        kv_bits: 4 or 8 stores it quantized.
        kv_group_size: values that share a scale then: 32, 64 or 128.
    """

    def __init__(self, max_kv_size: int | None = None, kv_bits: int | None = None, kv_group_size: int = 64):
        require(kv_bits in (None, 4, 8), "kv_bits must be 4 or 8", kv_bits)
        self.max_kv_size = max_kv_size
        self.kv_bits = kv_bits
        self.kv_group_size = kv_group_size
        self.keep = 0
        self.tokens: list[Token] = []  # may run ahead of the layers, or behind them by what was computed ahead
        self.layers: list[Any] = []
        self._model: Any = None  # whose keys and values they are
        self._lock = threading.RLock()

    def reset(self, keep: int = 0):
        """Forget everything; of the next prompt, a bounded cache will protect ``keep`` tokens, or all for 0."""
        self.keep, self.tokens, self.layers, self._model = keep, [], [], None

    @property
    def offset(self) -> int:
        """How many tokens it has seen; a bounded one may hold fewer."""
        return min((layer.offset for layer in self.layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    def shared(self, tokens: list[Token]) -> int:
        """How many of a prompt's first tokens it holds.

        Pictures count as a whole, and the last token never does: it is needed for the logits.
        """
        most = min(len(tokens) - 1, len(self.tokens), self.offset)
        count = next((i for i in range(most) if self.tokens[i] != tokens[i]), max(most, 0))
        while count and isinstance(tokens[count], tuple) and tokens[count][1]:
            count -= 1
        return count

    def check(self, model: FastVlmModel, tokens: list[Token]):
        """Whether a prompt can go on from here.

        Raises:
            UsageError: where the prompt does not fit, or a ``kv_group_size`` does not suit the model.
            ValueError: where the cache belongs to another model.
            StaleCache: where tokens would have to be taken back that a bounded cache has overwritten others for.
        """
        if self.layers and self._model is not model:
            raise ValueError("The prompt cache belongs to another model; give this one a PromptCache of its own.")
        if self.kv_bits is not None:
            check_group_size(model, self.kv_group_size)
        shared = self.shared(tokens)
        if any(layer.offset > shared and not layer.is_trimmable() for layer in self.layers):
            raise StaleCache(
                f"The prompt goes on from {shared} of the {self.offset} tokens in the prompt cache, but a bounded "
                "cache that has begun to overwrite can't go back; reset() it first."
            )
        if self.max_kv_size is not None:
            check_capacity(self.max_kv_size, self._keep_for(tokens, shared))

    def begin(self, model: FastVlmModel, tokens: list[Token]) -> int:
        """Take in a prompt; returns how many of its tokens need not be computed again.

        The list is the cache's from now on: the answer adds its tokens to it, and is known by it (:meth:`growing`).
        """
        with self._lock:
            self.check(model, tokens)
            shared = self.shared(tokens)
            self.keep = self._keep_for(tokens, shared)
            if not self.layers:
                self.layers = self._make_layers(model)
            for layer in self.layers:
                layer.trim(layer.offset - shared)
                if self.max_kv_size is not None:
                    layer.keep = self.keep
            self.tokens, self._model = tokens, model
            return shared

    @contextlib.contextmanager
    def growing(self, tokens: list[Token]) -> Iterator[list[Any]]:
        """Its layers, for an answer to write to, which no other answer does meanwhile, in whatever thread.

        Args:
            tokens: the list that :meth:`begin` was given.

        Raises:
            ValueError: another answer has begun since.
        """
        with self._lock:
            if self.tokens is not tokens:
                raise ValueError(
                    "Another answer has taken over the prompt cache (or the chat session); give answers that run at "
                    "the same time one each."
                )
            yield self.layers

    def _make_layers(self, model: FastVlmModel) -> list[Any]:
        return make_cache(model, self.max_kv_size, self.keep, self.kv_bits, self.kv_group_size)

    def _keep_for(self, tokens: list[Token], shared: int) -> int:
        """The first prompt is protected; one that leaves it before its end is a first prompt itself."""
        return self.keep if self.keep and (shared >= self.keep or not self.layers) else len(tokens)


def check_group_size(model: FastVlmModel, group_size: int):
    """``UsageError`` that says what suits unless the decoder's heads divide into groups of this size."""
    head_dim = model.config.text_config.head_dim
    fitting = [size for size in GROUP_SIZES if head_dim % size == 0]
    if group_size not in fitting:
        advice = f"use {' or '.join(map(str, fitting))}" if fitting else "leave out kv_bits, since none of MLX's does"
        raise UsageError(f"kv_group_size must divide the model's head_dim {head_dim}, got {group_size}; {advice}.")


def mark_images(ids: list[int], image_token_id: int, pictures: list[str], tokens_per_image: int) -> list[Token]:
    """Token ids as the prompt cache compares them: each picture's placeholders replaced by what they stand for."""
    placeholders = ((picture, i) for picture in pictures for i in range(tokens_per_image))
    return [next(placeholders) if id == image_token_id else id for id in ids]


_FORMAT = "mlx_fastvlm prompt cache 1"


def save_prompt_cache(file: str | Path, cache: PromptCache):
    """Write a prompt cache to a safetensors file; the pictures themselves are not in it."""
    if not cache.layers:
        raise ValueError("The prompt cache is empty; generate something with it before saving it.")
    held = dict(tree_flatten([_held(layer) for layer in cache.layers]))
    facts = {
        "format": _FORMAT,
        "model": model_fingerprint(cache._model),
        "offsets": [layer.offset for layer in cache.layers],
        "tokens": cache.tokens,
        "keep": cache.keep,
        "policy": [cache.max_kv_size, cache.kv_bits, cache.kv_group_size],
    }
    # Opened here, since MLX would add an extension of its own to a name.
    with atomic_file(Path(file)) as unfinished, unfinished.open("wb") as opened:
        mx.save_safetensors(opened, held, {"mlx_fastvlm": json.dumps(facts)})


def _held(layer: Any) -> dict[str, Any]:
    """What a layer's cache holds, oldest first, without free places."""

    def ordered(x: mx.array) -> mx.array:
        return layer._temporal_order(x) if hasattr(layer, "max_size") else x[..., : layer.offset, :]

    return {"keys": tree_map(ordered, layer.keys), "values": tree_map(ordered, layer.values)}


def load_prompt_cache(file: str | Path, model: FastVlmModel) -> PromptCache:
    """Read what :func:`save_prompt_cache` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no prompt cache, or another model's.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such prompt cache; check the path.")
    try:
        arrays, metadata = read_safetensors(Path(file))
        facts = json.loads(metadata["mlx_fastvlm"])
        known = facts["format"] == _FORMAT
    except (KeyError, ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{file} is not a prompt cache of this package; make it with save_prompt_cache.")
    if facts["model"] != model_fingerprint(model):
        raise ValueError(f"{file} was made with another model; make it again with this one.")
    cache = PromptCache(*facts["policy"])
    cache.keep, cache._model = facts["keep"], model
    cache.tokens = [tuple(token) if isinstance(token, list) else token for token in facts["tokens"]]
    cache.layers = cache._make_layers(model)
    stored = tree_unflatten(list(arrays.items()))
    for layer, parts, offset in zip(cache.layers, stored, facts["offsets"]):
        layer.keys, layer.values, layer.offset = parts["keys"], parts["values"], offset
        if cache.max_kv_size is not None:
            layer._idx = tree_flatten(layer.keys)[0][1].shape[2]
    return cache
