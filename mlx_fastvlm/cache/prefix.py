"""Beginnings that prompts share: the keys and values of earlier prompts, by their tokens and images, up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import require, require_whole
from .beginnings import Beginnings
from .kv import KVCache
from .parameters import Parameters, parameters_of
from .prompt import Contents

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmModel
    from .policy import CachePolicy
    from .tokens import Token

MAX_PROMPTS = 256


@dataclass
class _Prompt:
    """What the decoder made of a prompt: for each layer keys and values, (1, heads, tokens, head_dim)."""

    arrays: list[tuple[mx.array, mx.array]]

    @cached_property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.arrays)


@dataclass
class _Model:
    """A model, which is held as its ``id`` would be another's some day, what its parameters were, and what it read."""

    model: Any
    parameters: Parameters
    prompts: Beginnings


class PrefixCache:
    """Keys and values of the prompts that were read last, for prompts that begin like one of them.

    A system prompt, an image with what stands before it, the turns of a conversation: what a new prompt has in common
    with an earlier one, images by their pixels and as a whole, is not computed again. Prompts of unbounded caches in
    full precision are kept and served; others are read as always. What a model's weights made before they changed is
    forgotten.

    Args:
        max_bytes: bound on the memory; the longest unused go first, also of more than ``MAX_PROMPTS`` prompts. A token
            takes 24.6 kB with FastVLM-0.5B in float32.

    Attributes:
        hits, misses: how often a prompt found a beginning here, and how often not.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        require_whole("max_bytes", max_bytes)
        require(max_bytes >= 1, "max_bytes must be at least 1", max_bytes)
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._prompts: OrderedDict[tuple[int, tuple[Token, ...]], _Prompt] = OrderedDict()  # by model and tokens
        self._models: dict[int, _Model] = {}
        self._lock = threading.Lock()

    @staticmethod
    def serves(policy: CachePolicy) -> bool:
        return policy.max_kv_size is None and policy.kv_bits is None

    @property
    def nbytes(self) -> int:
        return sum(prompt.nbytes for prompt in list(self._prompts.values()))

    def __len__(self) -> int:
        return len(self._prompts)

    def _prompts_of(self, model: FastVlmModel, parameters: Parameters) -> Beginnings:
        """A model's prompts; those that these parameters did not make are forgotten."""
        known = self._models.get(id(model))
        if known is None:
            return Beginnings()
        if known.parameters is not parameters:
            for tokens in list(known.prompts):
                self._forget(id(model), tokens)
            return Beginnings()
        return known.prompts

    def find(self, model: FastVlmModel, tokens: list[Token]) -> Contents | None:
        """The longest beginning that is known of a prompt, as a prompt cache holds it; None if there is none."""
        parameters = parameters_of(model)
        with self._lock:
            best, count = self._prompts_of(model, parameters).longest(tokens)
            if count == 0:
                self.misses += 1
                return None
            self.hits += 1
            self._prompts.move_to_end((id(model), best))
            caches = [_beginning(keys, values, count) for keys, values in self._prompts[id(model), best].arrays]
            return Contents(list(best[:count]), 0, model, caches, parameters)

    def put(self, model: FastVlmModel, tokens: list[Token], caches: list[KVCache], parameters: Parameters) -> None:
        """Keep what caches hold that have read exactly these tokens. A prompt that another begins with is not kept.

        Args:
            parameters: the model's, as they were when the prompt was begun.
        """
        new = tuple(tokens)
        with self._lock:
            prompts = self._prompts_of(model, parameters)
            if prompts.longest(new)[1] == len(new):
                return
            arrays = [(_copy(cache, cache.keys), _copy(cache, cache.values)) for cache in caches]
            mx.async_eval(arrays)  # whatever thread needs them next
            self._models.setdefault(id(model), _Model(model, parameters, prompts))
            replaced = prompts.add(new)
            if replaced is not None:
                del self._prompts[id(model), replaced]
            self._prompts[id(model), new] = _Prompt(arrays)
            while len(self._prompts) > MAX_PROMPTS or self.nbytes > self.max_bytes:
                self._forget(*next(iter(self._prompts)))

    def _forget(self, model: int, tokens: tuple[Token, ...]) -> None:
        del self._prompts[model, tokens]
        self._models[model].prompts.remove(tokens)
        if not self._models[model].prompts:
            del self._models[model]


def _copy(cache: KVCache, x: mx.array | None) -> mx.array:
    assert x is not None  # a prompt has tokens
    return mx.contiguous(cache.in_order(x))


def _beginning(keys: mx.array, values: mx.array, count: int) -> KVCache:
    cache = KVCache()
    # Slices, which are arrays of their own: the cache copies them as soon as it grows.
    cache.keys, cache.values, cache.offset = keys[..., :count, :], values[..., :count, :], count
    return cache
