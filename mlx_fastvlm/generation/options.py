"""What a generation can be told, checked before anything runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import mlx.core as mx

from ..cache.prompt import PromptCache, check_group_size
from ..cache.vision import VisionCache
from ..errors import require
from ..models.fastvlm import FastVlmForConditionalGeneration

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]  # tokens so far, logits (1, vocabulary) -> logits
Progress = Callable[[int, int], None]  # prompt tokens done, prompt tokens to do


_OPTIONAL = ("seed", "image_size", "max_kv_size", "kv_bits", "repetition_penalty")
_WHOLE = (
    "max_tokens",
    "top_k",
    "seed",
    "repetition_context_size",
    "image_size",
    "frames",
    "vision_batch_size",
    "max_kv_size",
    "kv_bits",
    "kv_group_size",
    "prefill_step_size",
)


@dataclass(frozen=True)
class GenerationOptions:
    """The keyword options of ``generate``, ``stream_generate``, ``batch_generate`` and ``ChatSession``.

    Attributes:
        max_tokens: the longest answer, in tokens.
        temperature: 0 takes the likeliest token; higher values sample more freely.
        top_p, top_k, min_p: sample only among the likeliest tokens: of this total probability, this many, or at least
            this probability relative to the likeliest. 1, 0 and 0 leave all in.
        seed: for sampling; the same seed gives the same text, whatever was generated before.
        repetition_penalty: above 1, makes tokens among the last ``repetition_context_size`` (of prompt and answer,
            pictures left out) less likely to come again.
        logit_bias: token id -> what is added to its logit before every choice.
        logits_processors: functions of (tokens so far, logits) that return changed logits, as in mlx-lm. Both are
            arrays, (tokens,) and (1, vocabulary); a picture's tokens are left out of the first.
        stop: a text, or several, that ends the answer where it first appears; it is not part of the answer.
        logprobs: whether responses carry the chosen token's log-probability.
        system: a system prompt instead of the template's own.
        image_size: side of the square that pictures are scaled to, in pixels, a multiple of 64.
        frames: of an animation, how many frames to take, evenly spaced, each as a picture; 1 is the first.
        vision_batch_size: how many pictures go through the vision tower at a time.
        vision_cache: keeps the features of pictures from call to call.
        max_kv_size: bounds the KV cache to so many tokens; the whole (first) prompt always stays in it.
        kv_bits: 4 or 8 stores the KV cache quantized; None does not.
        kv_group_size: values that share a scale in the quantized cache: 32, 64 or 128, a divisor of ``head_dim``.
        prompt_cache: keeps the KV cache from call to call, so that a prompt that goes on from the last one costs its
            new tokens only.
        prefill_step_size: longer prompts are read in pieces of so many tokens, which bounds memory.
        progress: called with (done, all) after each of those pieces, in tokens.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    logit_bias: dict[int, float] | None = None
    logits_processors: list[LogitsProcessor] | None = None
    stop: str | list[str] | None = None
    logprobs: bool = False
    system: str | None = None
    image_size: int | None = None
    frames: int = 1
    vision_batch_size: int = 1
    vision_cache: VisionCache | None = None
    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    prompt_cache: PromptCache | None = None
    prefill_step_size: int = 2048
    progress: Progress | None = None

    def __new__(cls, *_, **options):
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise TypeError(f"There is no option {name}" + (f"; did you mean {near[0]}?" if near else "."))
        return super().__new__(cls)

    def __post_init__(self):
        for name in _WHOLE:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole or (value is None and name in _OPTIONAL), f"{name} must be a whole number", value)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            require(number or (value is None and name in _OPTIONAL), f"{name} must be a finite number", value)
        require(isinstance(self.system, (str, type(None))), "system must be a text", self.system)
        require(all(isinstance(text, str) for text in self.stop_strings), "stop must hold texts", self.stop)
        require(self.seed is None or 0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1", self.seed)
        for bias in (self.logit_bias or {}).values():
            # Minus infinity rules a token out.
            require(bias == bias and bias < math.inf, "logit_bias must be below infinity", bias)
        penalty, size = self.repetition_penalty, self.repetition_context_size
        require(self.max_tokens >= 1, "max_tokens must be at least 1", self.max_tokens)
        require(self.temperature >= 0, "temperature must be at least 0", self.temperature)
        require(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        require(self.top_k >= 0, "top_k must be at least 0", self.top_k)
        require(0 <= self.min_p <= 1, "min_p must lie between 0 and 1", self.min_p)
        require(penalty is None or penalty > 0, "repetition_penalty must be above 0", penalty)
        require(size >= 1, "repetition_context_size must be at least 1", size)
        require(all(self.stop_strings), "stop must not hold an empty string", self.stop)
        require(self.frames >= 1, "frames must be at least 1", self.frames)
        require(self.vision_batch_size >= 1, "vision_batch_size must be at least 1", self.vision_batch_size)
        require(self.prefill_step_size >= 1, "prefill_step_size must be at least 1", self.prefill_step_size)
        require(self.max_kv_size is None or self.max_kv_size >= 1, "max_kv_size must be at least 1", self.max_kv_size)
        require(self.kv_bits in (None, 4, 8), "kv_bits must be 4 or 8", self.kv_bits)
        if self.prompt_cache is not None:
            bounds = (self.max_kv_size, self.kv_bits)
            require(bounds == (None, None), "give max_kv_size and kv_bits to the PromptCache itself", bounds)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self, model: FastVlmForConditionalGeneration):
        """``UsageError`` where an option does not suit the model."""
        size = model.config.text_config.vocab_size
        for id in self.logit_bias or ():
            require(0 <= id < size, f"logit_bias must be for token ids from 0 to {size - 1}", id)
        if self.kv_bits is not None:
            check_group_size(model, self.kv_group_size)
