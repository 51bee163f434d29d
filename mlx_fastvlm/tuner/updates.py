"""Summed gradients -> new weights; on a GPU fused: AdamW then takes 9 kernels for each matrix in place of 30.

On a CPU, MLX fuses by running the system's C++ compiler, whose time only a long training wins back.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map


class Updates:
    """What one training does with its gradients, again and again.

    Args:
        optimizer: whose state nobody replaces from now on.
        max_norm: length that the gradients of an update have at most, all together; None for any.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, max_norm: float | None) -> None:
        self._model, self._optimizer, self._max_norm = model, optimizer, max_norm
        self._mean, self._apply = self._mean_of, optimizer.apply_gradients
        if mx.default_device().type == mx.DeviceType.gpu:
            self._mean = mx.compile(self._mean_of)
            self._apply = mx.compile(optimizer.apply_gradients, inputs=optimizer.state, outputs=optimizer.state)

    def mean(self, gradients: Any, tokens: int) -> tuple[Any, mx.array]:
        """Gradients of a loss summed over so many tokens -> those of its mean, bounded; and their length before that.

        Args:
            gradients: a tree of arrays, as the model's trainable parameters are.

        Returns:
            The same tree, in the same types, and a float32 scalar.
        """
        mean: tuple[Any, mx.array] = self._mean(gradients, mx.array(tokens, mx.float32))
        return mean

    def apply(self, gradients: Any) -> None:
        """Change the model's weights, in place."""
        self._model.update(self._apply(gradients, self._model.trainable_parameters()))

    def _mean_of(self, gradients: Any, tokens: mx.array) -> tuple[Any, mx.array]:
        gradients = tree_map(lambda x: (x / tokens).astype(x.dtype), gradients)
        norm = mx.sqrt(sum(x.astype(mx.float32).square().sum() for _, x in tree_flatten(gradients)))
        if self._max_norm is None:
            return gradients, norm
        factor = mx.minimum(self._max_norm / (norm + 1e-6), 1.0)
        return tree_map(lambda x: (x * factor).astype(x.dtype), gradients), norm
