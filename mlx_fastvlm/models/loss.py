"""The loss of predicting the next token."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from .placeholders import signed


def causal_lm_loss(logits: mx.array, labels: mx.array, shift_labels: mx.array | None = None) -> mx.array:
    """Mean cross entropy of predicting the next label, in float32.

    Args:
        logits: (batch, length, vocabulary size).
        labels: (batch, length), -100 where there is nothing to learn.
        shift_labels: (batch, length), what each position should predict, instead of the label behind it.

    Returns:
        A scalar; NaN where no label counts, as in transformers.

    Raises:
        ValueError: where the labels have another length than the logits.
    """
    for name, given in (("labels", labels), ("shift_labels", shift_labels)):
        if given is not None and logits.shape[:2] != given.shape:
            raise ValueError(f"{name} must have the logits' shape {logits.shape[:2]}, got {tuple(given.shape)}.")
    if shift_labels is None:
        logits, targets = logits[:, :-1], signed(labels)[:, 1:]
    else:
        targets = signed(shift_labels)
    if targets.size == 0:  # rows of one token: MLX's cross entropy takes no empty array
        return mx.array(math.nan)
    counted = targets != -100
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), mx.where(counted, targets, 0))
    return (losses * counted).sum() / counted.sum()
