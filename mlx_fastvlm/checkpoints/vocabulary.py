"""Another size of the vocabulary."""

from __future__ import annotations

import math

import mlx.core as mx


def resized_rows(matrix: mx.array, rows: int, spread: float = 1e-9) -> mx.array:
    """A matrix with that many rows; new ones lie close to the mean of the old, as an untrained token's should.

    transformers draws them the same way, from a normal distribution with the old rows' mean and a small share of their
    covariance, so that no token of the old vocabulary loses probability to a new one.

    Args:
        matrix: (old rows, width), float.
        spread: that share of the covariance. The draws are the same each time.
    """
    if rows <= matrix.shape[0]:
        return matrix[:rows]
    old = matrix.astype(mx.float32)
    mean = old.mean(axis=0)
    # Random combinations of the centred rows have their covariance.
    draws = mx.random.normal((rows - matrix.shape[0], matrix.shape[0]), key=mx.random.key(0))
    new = mean + draws @ (old - mean) * math.sqrt(spread / matrix.shape[0])
    return mx.concatenate([matrix, new.astype(matrix.dtype)])
