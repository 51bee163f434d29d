"""Conversations of a data set as a converter is given them, to choose by them what rounding weights may cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from ..errors import UsageError, require, require_whole
from .features import ImageFeatures
from .samples import encode_all

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .conversations import Conversation

ROWS = 64


def calibration(
    conversations: list[Conversation], rows: int = ROWS, image_size: int | None = None
) -> Callable[[FastVlmForConditionalGeneration, FastVlmProcessor], list[mx.array]]:
    """For ``convert(..., q_gptq=calibration(read_conversations("data", "train")))``.

    Args:
        conversations: of which ``rows`` are taken, evenly chosen; all where there are fewer.
        image_size: see ``FastVlmProcessor.prepare``.

    Returns:
        A function of model and processor that returns what the decoder is given, each (1, length, text hidden size).
        It raises ValueError or OSError where an image or a template has something wrong; the sentence says which.

    Raises:
        UsageError: there are no conversations, or ``rows`` is no number of them.
    """
    require_whole("rows", rows)
    require(rows >= 1, "rows must be at least 1", rows)
    if not conversations:
        raise UsageError("There are no conversations to calibrate on; give a training set, as for fine-tuning.")
    chosen = conversations[:: -(-len(conversations) // rows)]

    def embedded(model: FastVlmForConditionalGeneration, processor: FastVlmProcessor) -> list[mx.array]:
        longest = model.config.text_config.max_position_embeddings
        samples, _ = encode_all(chosen, processor, max_seq_length=longest, image_size=image_size)
        model.freeze()
        features = ImageFeatures(model, processor, image_size)
        features.prepare(samples)
        prompts = []
        for sample in samples:
            given = features.of([sample])
            prompts.append(model.embed(mx.array([sample.ids]), None if given is None else features.embeddings(given)))
            mx.eval(prompts[-1])
        return prompts

    return embedded
