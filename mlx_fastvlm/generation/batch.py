"""Several prompts at once: one pass through the decoder gives a token of every answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..errors import require
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.threads import end_streams_with_thread
from ..processing.images import ImageSource
from ..processing.messages import Prompt
from ..processing.processor import FastVlmProcessor
from .decoding import check_finite, prefill, step
from .options import GenerationOptions
from .request import Request, make_request
from .sampling import Sampler
from .text import TextStream


def batch_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompts: list[Prompt],
    images: list[ImageSource | list[ImageSource] | None] | None = None,
    *,
    batch_size: int = 16,
    **options,
) -> list[str]:
    """Answer several prompts, each as if it were alone.

    Args:
        prompts: questions or chat messages, as for :func:`mlx_fastvlm.stream_generate`.
        images: for each prompt its picture, a list of them, or None; or None for no pictures at all.
        batch_size: how many prompts run at a time.
        options: see :class:`mlx_fastvlm.GenerationOptions`; all but those of the KV cache (``max_kv_size``,
            ``kv_bits``, ``prompt_cache``), ``logprobs`` and ``progress``.

    Returns:
        The answers, in the prompts' order.

    Raises:
        ValueError, OSError: for a bad argument or picture in any of them, before anything runs.
    """
    chosen = GenerationOptions(**options)
    for name in ("max_kv_size", "kv_bits", "prompt_cache", "logprobs", "progress"):
        value = getattr(chosen, name)
        require(value in (None, False), f"{name} is not for batches; leave it out", value)
    chosen.check(model)
    require(batch_size >= 1, "batch_size must be at least 1", batch_size)
    require(not isinstance(prompts, str), "prompts must be a list", prompts)
    images = [None] * len(prompts) if images is None else images
    if len(images) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts and images for {len(images)}; give an entry for each, None for none."
        )
    requests = [make_request(processor, prompt, image, chosen) for prompt, image in zip(prompts, images)]
    for request in requests:
        request.check(model)
    end_streams_with_thread()
    texts = []
    for start in range(0, len(requests), batch_size):
        texts += _answer(model, processor, requests[start : start + batch_size], chosen)
    return texts


@dataclass
class _Row:
    """One answer in the making."""

    choose: Sampler
    text: TextStream
    pieces: list[str] = field(default_factory=list)


def _answer(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    requests: list[Request],
    options: GenerationOptions,
) -> list[str]:
    """The answers of one batch. A row that is done leaves it, so the others go on faster."""
    from mlx_lm.models.cache import BatchKVCache

    features = [encoded for r in requests if (encoded := r.features(model, processor, options)) is not None]
    input_ids = processor.pad([request.ids for request in requests])["input_ids"]
    embeddings = model.embed(input_ids, mx.concatenate(features) if features else None)
    padding = [input_ids.shape[1] - len(request.ids) for request in requests]
    layers = [BatchKVCache(padding) for _ in model.language_model.layers]
    rows = [_Row(Sampler(options, r.text_ids), TextStream(processor, options.stop_strings)) for r in requests]
    running = rows

    def choose(logits: mx.array) -> tuple[mx.array, mx.array]:
        """Every row's token, and the largest of its logits."""
        choices = [row.choose(logits[i : i + 1]) for i, row in enumerate(running)]
        tokens = mx.concatenate([choice.token for choice in choices])
        largest = mx.concatenate([choice.largest for choice in choices])
        mx.async_eval(tokens, largest)
        return tokens, largest

    tokens, largest = choose(prefill(model, embeddings, layers, options.prefill_step_size))
    for produced in range(1, options.max_tokens + 1):
        # The next tokens compute while these become text.
        upcoming = choose(step(model, tokens, layers)) if produced < options.max_tokens else None
        values: Any = (tokens.tolist(), largest.tolist())
        for row, token, logit in zip(running, *values):
            check_finite(logit, model, bool(options.logits_processors))
            row.pieces.append(row.text.add(token))
        going = [i for i, row in enumerate(running) if not row.text.ended]
        if not going or upcoming is None:
            break
        if len(going) < len(running):
            kept = mx.array(going)
            for layer in layers:
                layer.filter(kept)
            upcoming, running = (upcoming[0][kept], upcoming[1][kept]), [running[i] for i in going]
        tokens, largest = upcoming
    return ["".join(row.pieces) + row.text.finish() for row in rows]
