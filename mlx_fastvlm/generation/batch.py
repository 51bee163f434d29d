"""Several prompts at once: one pass through the decoder gives a token of every answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import require, require_whole
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.threads import end_streams_with_thread
from ..processing.images import ImageSource
from ..processing.messages import Prompt
from ..processing.processor import FastVlmProcessor
from .decoding import check_finite, prefill, step
from .options import GenerationOptions, Options, lists_options
from .request import Request, make_request
from .sampling import Sampler
from .text import TextStream

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11


@lists_options
def batch_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompts: list[Prompt],
    images: list[ImageSource | list[ImageSource] | None] | None = None,
    *,
    batch_size: int = 16,
    **options: Unpack[Options],
) -> list[str]:
    """Answer several prompts, each as if it were alone.

    Args:
        prompts: questions or chat messages, as for :func:`mlx_fastvlm.stream_generate`.
        images: for each prompt its image, a list of them, or None; or None for no images at all.
        batch_size: how many prompts run at a time.
        options: see :class:`mlx_fastvlm.GenerationOptions`; all but those of the KV cache (``max_kv_size``,
            ``kv_bits``, ``prompt_cache``), ``logprobs`` and ``progress``.

    Returns:
        The answers, in the prompts' order.

    Raises:
        ValueError, OSError: for a bad argument or image in any of them, before anything runs.
    """
    return answer_batch(model, processor, prompts, images, GenerationOptions(**options), batch_size)


def answer_batch(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompts: list[Prompt],
    images: list[ImageSource | list[ImageSource] | None] | None,
    options: GenerationOptions,
    batch_size: int,
) -> list[str]:
    """:func:`batch_generate` for whoever holds the options already."""
    for name in ("max_kv_size", "kv_bits", "prompt_cache", "logprobs", "progress"):
        value = getattr(options, name)
        require(value in (None, False), f"{name} is not for batches; leave it out", value)
    options.check(model)
    check_batch_size(batch_size)
    require(isinstance(prompts, (list, tuple)), "prompts must be a list", prompts)
    images = [None] * len(prompts) if images is None else images
    if len(images) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts and images for {len(images)}; give an entry for each, None for none."
        )
    requests = [make_request(processor, prompt, image, options) for prompt, image in zip(prompts, images)]
    for request in requests:
        request.check(model)
    end_streams_with_thread()
    texts = []
    for start in range(0, len(requests), batch_size):
        texts += _answer_together(model, processor, requests[start : start + batch_size], options)
    return texts


def check_batch_size(batch_size: int):
    require_whole("batch_size", batch_size)
    require(batch_size >= 1, "batch_size must be at least 1", batch_size)


@dataclass
class _Row:
    """One answer in the making."""

    sampler: Sampler
    text: TextStream
    pieces: list[str] = field(default_factory=list)


def _answer_together(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    requests: list[Request],
    options: GenerationOptions,
) -> list[str]:
    """The answers of one batch. A row that is done leaves it, so the others go on faster."""
    from mlx_lm.models.cache import BatchKVCache  # noqa: PLC0415  slow, and only for batches

    features = [encoded for r in requests if (encoded := r.features(model, processor, options)) is not None]
    input_ids = processor.pad([request.ids for request in requests])["input_ids"]
    embeddings = model.embed(input_ids, mx.concatenate(features) if features else None)
    padding = [input_ids.shape[1] - len(request.ids) for request in requests]
    caches = [BatchKVCache(padding) for _ in model.language_model.layers]
    rows = [_Row(Sampler(options, r.text_ids), TextStream(processor, options.stop_strings)) for r in requests]
    running = rows

    def choose(logits: mx.array) -> tuple[mx.array, mx.array]:
        """Every row's token, and the largest of its logits."""
        samples = [row.sampler(logits[i : i + 1]) for i, row in enumerate(running)]
        tokens = mx.concatenate([sample.token for sample in samples])
        largest = mx.concatenate([sample.largest for sample in samples])
        mx.async_eval(tokens, largest)
        return tokens, largest

    tokens, largest = choose(prefill(model, embeddings, caches, options.prefill_step_size))
    for produced in range(1, options.max_tokens + 1):
        # The next tokens compute while these become text.
        upcoming = choose(step(model, tokens, caches)) if produced < options.max_tokens else None
        values: Any = (tokens.tolist(), largest.tolist())
        for row, token, logit in zip(running, *values):
            check_finite(logit, model, bool(options.logits_processors))
            row.pieces.append(row.text.add(token))
        going = [i for i, row in enumerate(running) if not row.text.ended]
        if not going or upcoming is None:
            break
        if len(going) < len(running):
            kept = mx.array(going)
            for cache in caches:
                cache.filter(kept)
            upcoming, running = (upcoming[0][kept], upcoming[1][kept]), [running[i] for i in going]
        tokens, largest = upcoming
    return ["".join(row.pieces) + row.text.finish() for row in rows]
