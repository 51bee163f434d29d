"""What ``model.generate`` is told, and a batch of tensors that goes through the decoder step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

from ..cache.kv import KVCache
from ..errors import UsageError, require, require_whole

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration

NEW_TOKENS = 20  # transformers' default
StoppingCriterion = Callable[[mx.array, Any], Any]


@dataclass(frozen=True)
class TensorOptions:
    """The arguments of ``model.generate`` beside its inputs; names, meanings and defaults are transformers'.

    Attributes:
        max_new_tokens: the most that is generated, 20 by default; ``max_length`` counts the prompt too.
        min_new_tokens: no end before so many.
        do_sample: draw tokens, by ``mx.random``'s state, instead of taking the likeliest.
        temperature, top_k, top_p, min_p: of sampling, applied in this order; top_k is 50 by default, 0 takes all.
        repetition_penalty: above 1, tokens of prompt and answer become less likely.
        no_repeat_ngram_size: runs of so many tokens don't come twice.
        num_beams: sequences that are followed at a time, for each row.
        num_return_sequences: for each row, the best beams, or so many samples.
        length_penalty, early_stopping: of beams.
        eos_token_id: one or several that end a sequence; by default the config's.
        pad_token_id: fills sequences that ended earlier; by default the first of those.
        stopping_criteria: functions of (all ids (rows, length), scores or None) that return whether rows end: a bool,
            or one for each row.
        logits_processor: functions of (all ids, logits (rows, vocabulary)) that return changed logits.
        return_dict_in_generate: return a :class:`GenerateOutput`; ``output_scores``, ``output_logits``,
            ``output_hidden_states`` and ``output_attentions`` fill its fields.

    Raises:
        UsageError: for a value that an argument can't have.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    repetition_penalty: float | None = 1.0
    no_repeat_ngram_size: int | None = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    stopping_criteria: list[StoppingCriterion] | None = None
    logits_processor: list[Callable[[mx.array, mx.array], mx.array]] | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_hidden_states: bool = False
    output_attentions: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("num_return_sequences", 1)):
            require_whole(name, getattr(self, name))
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name))
        for name in ("max_new_tokens", "max_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"):
            value = getattr(self, name)
            if value is not None:
                require_whole(name, value)
                require(value >= (1 if name.startswith("max") else 0), f"{name} is too small", value)
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            require(value is None or 0 < value < 1e6, f"{name} must be a positive number", value)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name} must be from 0 to 1", value)
        require(self.early_stopping in (True, False, "never"), "early_stopping must be True, False or 'never'", self)
        if self.num_return_sequences > self.num_beams > 1:
            raise UsageError("num_return_sequences can't be more than num_beams.")
        if self.num_return_sequences > 1 and self.num_beams == 1 and not self.do_sample:
            raise UsageError("Greedy decoding has one answer; set do_sample or num_beams for num_return_sequences.")

    def new_tokens(self, prompt: int) -> int:
        """How many may be generated after a prompt of so many tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return NEW_TOKENS
        require(self.max_length > prompt, f"max_length must be above the prompt's {prompt} tokens", self.max_length)
        return self.max_length - prompt


@dataclass
class Record:
    """What was seen on the way."""

    scores: list[mx.array]
    logits: list[mx.array]
    sequences_scores: mx.array | None = None


_APART = ("attention_mask", "past_key_values")
_ROWS = ("input_ids", "inputs_embeds")


class Decoder:
    """A batch on its way: its caches, and what the next step needs.

    Attributes:
        ids: (rows, length), all so far; empty prompts where embeddings were given.
        prompt: length of the prompts.
        hidden_states, attentions: of each step, those of the layers, where the options ask for them.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, inputs: dict[str, Any], options: TensorOptions) -> None:
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        if (ids is None) == (embeds is None):
            raise UsageError("Give model.generate exactly one of input_ids and inputs_embeds.")
        self._model, self._mask = model, inputs.get("attention_mask")
        self.hidden_states: list[tuple[mx.array, ...]] = []
        self.attentions: list[tuple[mx.array, ...]] = []
        names = ("output_hidden_states", "output_attentions")
        self._shown: Any = {name: True for name in names if getattr(options, name)}
        given: Any = ids if embeds is None else embeds
        rows, length = given.shape[:2]
        if self._mask is not None:
            self._mask = mx.array(self._mask).astype(mx.int32)
            if self._mask.shape != (rows, length):
                raise UsageError(f"attention_mask must have shape {(rows, length)}, got {tuple(self._mask.shape)}.")
            if not self._mask[:, -1].all().item():
                raise UsageError("The prompts are padded on the right; pad them on the left (padding_side='left').")
            if self._mask.all().item():
                self._mask = None
        self.ids = mx.zeros((rows, 0), mx.int32) if ids is None else mx.array(ids).astype(mx.int32)
        self.prompt = self.ids.shape[1]
        self.caches: list[Any] = inputs.get("past_key_values") or [KVCache() for _ in model.language_model.layers]
        self._known = self._count_known(length)
        self._inputs = {name: value for name, value in inputs.items() if value is not None and name not in _APART}
        self._inputs |= {name: self._inputs[name][:, self._known :] for name in _ROWS if name in self._inputs}
        if self._known and not (self.ids[:, self._known :] == model.config.image_token_id).any().item():
            self._inputs = {name: value for name, value in self._inputs.items() if name in _ROWS}  # they were read

    def _count_known(self, length: int) -> int:
        """How many tokens of the prompts the caches hold; ``UsageError`` where that can't be."""
        known = self.caches[0].offset
        if not isinstance(known, int):
            raise UsageError("past_key_values whose rows have offsets of their own can't be continued from here.")
        if known >= length:
            raise UsageError(
                f"past_key_values hold {known} tokens; give these again and at least one more, got {length}."
            )
        return known

    def read(self) -> mx.array:
        """The prompts: logits of the next token, (rows, vocabulary), float32."""
        positions = None
        if self._mask is not None:
            positions = mx.maximum(mx.cumsum(self._mask, axis=1) - 1, 0)[:, self._known :]
        out = self._model(
            **self._inputs,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self.caches,
            logits_to_keep=1,
            **self._shown,
        )
        return self._seen(out)

    def _seen(self, out: Any) -> mx.array:
        """Of an output, the last logits; the rest is kept as far as it is asked for."""
        self.hidden_states += [out.hidden_states] if out.hidden_states else []
        self.attentions += [out.attentions] if out.attentions else []
        last: mx.array = out.logits[:, -1].astype(mx.float32)
        return last

    def repeat(self, times: int) -> None:
        """Each row so many times, one after the other."""
        if times > 1:
            self.take(mx.repeat(mx.arange(self.ids.shape[0]), times))
            self.ids = mx.repeat(self.ids, times, axis=0)
            for shown in (self.hidden_states, self.attentions):
                shown[:] = [tuple(mx.repeat(x, times, axis=0) for x in step) for step in shown]
            if self._mask is not None:
                self._mask = mx.repeat(self._mask, times, axis=0)

    def take(self, rows: mx.array) -> None:
        """Let these rows' caches be the rows' now."""
        for cache in self.caches:
            cache.keys, cache.values = (tree_map(lambda x: x[rows], part) for part in (cache.keys, cache.values))

    def step(self, tokens: mx.array) -> mx.array:
        """One more token for each row, (rows,): the logits behind it, as :meth:`read` gives them."""
        positions = None
        if self._mask is not None:
            self._mask = mx.concatenate([self._mask, mx.ones((self._mask.shape[0], 1), mx.int32)], axis=1)
            positions = self._mask.sum(axis=1, keepdims=True) - 1
        out = self._model(
            tokens[:, None],
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self.caches,
            **self._shown,
        )
        return self._seen(out)


def stopped(ids: mx.array, ends: list[int], options: TensorOptions, record: Record) -> mx.array:
    """Which rows end with their last token, (rows,) of bool."""
    done = mx.zeros((ids.shape[0],), mx.bool_)
    for end in ends:
        done = done | (ids[:, -1] == end)
    for criterion in options.stopping_criteria or []:
        said = criterion(ids, tuple(record.scores) if options.output_scores else None)
        done = done | mx.array(said, mx.bool_)
    return done
