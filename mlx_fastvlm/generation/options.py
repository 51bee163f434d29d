"""What a generation can be told, checked before anything runs."""

from __future__ import annotations

import copy
import difflib
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

import mlx.core as mx

from ..cache.policy import CachePolicy
from ..cache.prompt import PromptCache
from ..cache.vision import VisionCache
from ..errors import UsageError, require, require_whole
from ..keywords import lists_fields
from .constraints import DESCRIPTIONS, describe

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]  # tokens so far, logits (1, vocabulary) -> logits
Progress = Callable[[int, int], None]  # prompt tokens done, prompt tokens to do


class SessionOptions(TypedDict, total=False):
    """The options of ``ChatSession``, which has ``system`` as a parameter of its own."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    repetition_penalty: float | None
    repetition_context_size: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float] | None
    logits_processors: list[LogitsProcessor] | None
    stop: str | list[str] | None
    min_tokens: int
    json_schema: Any
    regex: str | None
    choices: list[str] | None
    grammar: str | None
    logprobs: bool
    top_logprobs: int
    image_size: int | None
    frames: int
    vision_batch_size: int | None
    vision_cache: VisionCache | None
    max_kv_size: int | None
    kv_bits: int | None
    kv_group_size: int
    prompt_cache: PromptCache | None
    prefill_step_size: int
    progress: Progress | None


class Options(SessionOptions, total=False):
    """The fields of :class:`GenerationOptions` for type checkers: ``**options: Unpack[Options]``."""

    system: str | None
    video: Any
    fps: float
    max_frames: int


@dataclass(frozen=True)
class GenerationOptions:
    """The keyword options of ``generate``, ``stream_generate``, ``batch_generate`` and ``ChatSession``.

    Attributes:
        max_tokens: stop after this many tokens.
        temperature: 0 always takes the likeliest token; higher values sample more freely.
        top_p, top_k, min_p: sample only among the likeliest tokens: those of this total probability, this many, or
            those at least this probable relative to the likeliest. 1, 0 and 0 leave all in. Several apply one after
            the other, as in mlx-lm: top_p, then min_p, then top_k.
        seed: for sampling; the same seed gives the same text, whatever was generated before. Without one,
            ``mx.random.seed`` decides in the main thread, and chance in others.
        repetition_penalty: above 1, makes tokens among the last ``repetition_context_size`` (of prompt and answer,
            images left out) less likely to be repeated.
        presence_penalty, frequency_penalty: subtracted from the logit of each token that is already in the answer,
            once, and once for each time it occurs; from -2 to 2, as in OpenAI's API. Negative values encourage
            repetition.
        logit_bias: maps token ids to what is added to their logits before every choice; minus infinity rules one out.
        logits_processors: functions of (tokens so far, logits) that return changed logits, as in mlx-lm. Both are
            arrays, (tokens,) and (1, vocabulary); an image's tokens are left out of the first.
        stop: a text, or several, that ends the answer where it first appears; it is not part of the answer.
        min_tokens: keep the model from stopping before this many tokens; stop strings still end the answer.
        json_schema: the answer is JSON that keeps to this schema: a dict, JSON text, or a class that pydantic can
            describe (a model, a dataclass). Properties come in the schema's order, without white space between them.
        regex: the whole answer matches this regular expression (Rust's syntax, without look-around).
        choices: the answer is one of these texts. :func:`mlx_fastvlm.decide` also tells how likely each is.
        grammar: the answer keeps to this grammar, in llguidance's variant of lark's notation. Only one of these four
            can be given; each needs the extra ``constraints``, and a prompt that asks for what it describes.
        logprobs: include the chosen token's log-probability in each response.
        top_logprobs: include this many of the likeliest tokens with their log-probabilities, 0 to 20. More than 0
            implies ``logprobs``.
        system: a system prompt to use instead of the template's.
        image_size: side of the square that images are scaled to, in pixels, a multiple of 64: smaller is faster, and
            less accurate for a checkpoint that was trained at another size.
        frames: how many frames to take of an animation, evenly spaced, each as an image; 1 is the first.
        video: a video (a path, a URL, or anything else that an image can be read from), or a list of frames. Its frames
            go before the first question, each after its time.
        fps, max_frames: how many frames to take per second of video, and at most in all; a longer video is sampled more
            thinly. For a list of frames, fps is how fast they were taken.
        vision_batch_size: images per pass through the vision tower. None takes as many small ones as have together the
            pixels of one at the checkpoint's own size, and otherwise one.
        vision_cache: keeps the features of images from call to call.
        max_kv_size: limits the KV cache to this many tokens; the whole (first) prompt always stays in it.
        kv_bits: 4 or 8 quantizes the KV cache; None does not.
        kv_group_size: values that share a scale in the quantized cache: 32, 64 or 128, a divisor of ``head_dim``.
        prompt_cache: keeps the KV cache from call to call, so that a prompt that continues the last one only costs its
            new tokens.
        prefill_step_size: read long prompts in pieces of this many tokens, which bounds memory.
        progress: called with (done, all) after each of those pieces, in tokens.

    Raises:
        UsageError: for a value that can't be.
        TypeError: for an option that there is not.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    logits_processors: list[LogitsProcessor] | None = None
    stop: str | list[str] | None = None
    min_tokens: int = 0
    json_schema: Any = None  # a dict, JSON text or a class
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    system: str | None = None
    image_size: int | None = None
    frames: int = 1
    video: Any = None  # a processing.video.VideoSource
    fps: float = 1.0
    max_frames: int = 8
    vision_batch_size: int | None = None
    vision_cache: VisionCache | None = None
    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    prompt_cache: PromptCache | None = None
    prefill_step_size: int = 2048
    progress: Progress | None = None

    def __new__(cls, *_: Any, **options: Any) -> GenerationOptions:
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = [_ELSEWHERE[name]] if name in _ELSEWHERE else difflib.get_close_matches(name, known, n=1)
                raise TypeError(f"There is no option {name}" + (f"; did you mean {near[0]}?" if near else "."))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_seed()
        self._check_sampling()
        self._check_logit_bias()
        self._check_texts()
        self._check_constraint()
        self._check_objects()
        policy = self.cache_policy
        if self.prompt_cache is not None:
            bounds = (policy.max_kv_size, policy.kv_bits)
            require(bounds == (None, None), "give max_kv_size and kv_bits to the PromptCache itself", bounds)

    def _check_counts(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            require_whole(name, value)
            require(value >= 1, f"{name} must be at least 1", value)
        for name in ("top_k", "min_tokens", "top_logprobs"):
            value = getattr(self, name)
            require_whole(name, value)
            require(value >= 0, f"{name} must be at least 0", value)
        require(self.top_logprobs <= 20, "top_logprobs must be at most 20", self.top_logprobs)
        require(self.min_tokens <= self.max_tokens, "min_tokens must be at most max_tokens", self.min_tokens)
        require_whole("vision_batch_size", self.vision_batch_size, optional=True)
        group = self.vision_batch_size
        require(group is None or group >= 1, "vision_batch_size must be at least 1", group)
        require_whole("image_size", self.image_size, optional=True)  # the processor knows which
        _require_number("fps", self.fps)
        require(self.fps > 0, "fps must be above 0", self.fps)

    def _check_seed(self) -> None:
        require_whole("seed", self.seed, optional=True)
        require(self.seed is None or 0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1", self.seed)

    def _check_sampling(self) -> None:
        temperature, penalty = self.temperature, self.repetition_penalty
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"):
            _require_number(name, getattr(self, name))
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            require(-2 <= value <= 2, f"{name} must lie between -2 and 2", value)
        require(temperature >= 0, "temperature must be at least 0", temperature)
        require(temperature == 0 or _computable(temperature), f"temperature must be 0, or {_RANGE}", temperature)
        require(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        require(0 <= self.min_p <= 1, "min_p must lie between 0 and 1", self.min_p)
        if penalty is not None:
            _require_number("repetition_penalty", penalty)
            require(penalty > 0, "repetition_penalty must be above 0", penalty)
            require(_computable(penalty), f"repetition_penalty must be {_RANGE}", penalty)

    def _check_logit_bias(self) -> None:
        if self.logit_bias is None:
            return
        require(isinstance(self.logit_bias, dict), "logit_bias must be a dict of token id: number", self.logit_bias)
        for id, bias in self.logit_bias.items():
            require_whole("a token id in logit_bias", id)
            require(_is_number(bias), "logit_bias must hold numbers", bias)
            require(bias == bias and bias < math.inf, "logit_bias must be below infinity", bias)
            require(bias == -math.inf or _in_float32(bias), "logit_bias must hold numbers of float32", bias)

    def _check_texts(self) -> None:
        require(isinstance(self.system, (str, type(None))), "system must be a text", self.system)
        kinds = (str, list, tuple, set, frozenset, type(None))
        require(isinstance(self.stop, kinds), "stop must be a text or a list of texts", self.stop)
        require(all(isinstance(text, str) for text in self.stop_strings), "stop must hold texts", self.stop)
        require(all(self.stop_strings), "stop must not hold an empty string", self.stop)

    def _check_constraint(self) -> None:
        given = [name for name in DESCRIPTIONS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} can't both hold; give one of them.")
        if self.constraint is not None:
            describe(*self.constraint)
            require(
                self.min_tokens == 0,
                f"{given[0]} says where an answer may end, so min_tokens must be 0",
                self.min_tokens,
            )

    def _check_objects(self) -> None:
        require(isinstance(self.logprobs, bool), "logprobs must be True or False", self.logprobs)
        processors = [] if self.logits_processors is None else self.logits_processors
        functions = isinstance(processors, (list, tuple)) and all(map(callable, processors))
        require(functions, "logits_processors must be a list of functions", processors)
        require(self.progress is None or callable(self.progress), "progress must be a function", self.progress)
        readable = isinstance(self.video, (str, os.PathLike, bytes, bytearray, memoryview, list, tuple, type(None)))
        require(readable or hasattr(self.video, "read"), "video must be a path, URL, bytes, file or list", self.video)
        if self.video is None and (self.fps, self.max_frames) != (type(self).fps, type(self).max_frames):
            raise UsageError("fps and max_frames are about a video; give one as video, or leave them out.")
        for name, kind in (("vision_cache", VisionCache), ("prompt_cache", PromptCache)):
            value = getattr(self, name)
            require(value is None or isinstance(value, kind), f"{name} must be a {kind.__name__}", value)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """The option that describes the whole answer, and its value."""
        given = ((name, getattr(self, name)) for name in DESCRIPTIONS)
        return next((pair for pair in given if pair[1] is not None), None)

    def warn_of_cut(self, finish_reason: str | None) -> None:
        """Where an answer that should keep to a description is only the beginning of one, say so."""
        if finish_reason == "length" and self.constraint is not None:
            name, _ = self.constraint
            warnings.warn(
                f"The answer was cut at max_tokens={self.max_tokens}, before it kept to its {name}; raise max_tokens.",
                stacklevel=3,
            )

    def with_seed(self, seed: int | None) -> GenerationOptions:
        """The same with another seed, which alone is checked: a schema takes a while, and was looked at already."""
        options = copy.copy(self)
        object.__setattr__(options, "seed", seed)
        options._check_seed()
        return options

    @property
    def cache_policy(self) -> CachePolicy:
        """Of the KV cache, where there is no ``prompt_cache``."""
        return CachePolicy(self.max_kv_size, self.kv_bits, self.kv_group_size)

    def check(self, model: FastVlmForConditionalGeneration) -> None:
        """``UsageError`` where an option does not suit the model."""
        size = model.config.text_config.vocab_size
        for id in self.logit_bias or ():
            require(0 <= id < size, f"logit_bias must be for token ids from 0 to {size - 1}", id)
        self.cache_policy.check(model)


# What other libraries call them.
_ELSEWHERE = {
    "temp": "temperature",
    "images": "image",
    "image_path": "image",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "do_sample": "temperature",
    "sampler": "temperature, top_p, top_k or min_p",
    "eos_token_id": "stop",
    "stop_strings": "stop",
    "system_prompt": "system",
    "resize_shape": "image_size",
    "num_beams": "model.generate, which has beams",
    "quantized_kv_start": "kv_bits",
    "response_format": "json_schema",
    "streamer": "stream_generate",
}
_COUNTS = (
    "max_tokens",
    "repetition_context_size",
    "frames",
    "max_frames",
    "prefill_step_size",
)
_FLOAT32_MIN, _FLOAT32_MAX = 2**-126, (2 - 2**-23) * 2.0**127  # what is closer to 0 is 0 to most devices
# Logits are divided by some numbers, and must neither vanish by that nor become infinite.
_SMALLEST, _LARGEST = 1e-30, 1e30
_RANGE = f"a number between {_SMALLEST:g} and {_LARGEST:g}"


def _computable(value: float) -> bool:
    return _SMALLEST <= value <= _LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _in_float32(value: float) -> bool:
    return value == 0 or _FLOAT32_MIN <= abs(value) <= _FLOAT32_MAX


def _require_number(name: str, value: Any) -> None:
    finite = _is_number(value) and value == value and abs(value) != math.inf
    require(finite, f"{name} must be a finite number", value)
    require(_in_float32(value), f"{name} must be a number that float32 can hold", value)


lists_options = lists_fields(GenerationOptions)
lists_options_but_video = lists_fields(GenerationOptions, but=("video", "fps", "max_frames"))
