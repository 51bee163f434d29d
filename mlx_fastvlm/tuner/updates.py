"""Summed gradients -> new weights.

Adapters are many small matrices, and what an optimizer does to one takes longer to start than to do. So all of them are
updated as one array, where the optimizer treats each value alone. Larger ones, which that would copy, and optimizers
that look at whole matrices have theirs updated one by one; on a GPU fused, so that AdamW takes 5 kernels for each in
place of 29. (On a CPU, MLX fuses by running the system's C++ compiler, whose time only a long training wins back.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from .packing import pack, unpack

ALONE = (optim.Adam, optim.SGD)  # they, and AdamW, which is an Adam, treat each value alone
MOST = 2**25  # values that are packed: 134 MB in float32, of the weights and of their gradients


class Updates:
    """What one training does with its gradients, again and again.

    Args:
        model: ready for training, that is, frozen where it is not trained.
        optimizer: a new one.
        max_norm: length that the gradients of an update have at most, all together; None for any.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, max_norm: float | None) -> None:
        self._model, self._optimizer, self._max_norm = model, optimizer, max_norm
        weights = [array for _, array in tree_flatten(model.trainable_parameters())]
        packs = isinstance(optimizer, ALONE) and sum(array.size for array in weights) <= MOST
        self._packs = packs and {array.dtype for array in weights} == {mx.float32}
        self._fuses = mx.default_device().type == mx.DeviceType.gpu
        optimizer.init(self.gather(model.trainable_parameters()))

    def gather(self, tree: Any) -> dict[str, Any]:
        """Gradients, or any tree of the trainable parameters' shapes, as they are summed and updated."""
        gathered: dict[str, Any] = {"packed": pack(tree)} if self._packs else tree
        return gathered

    def mean(self, gradients: dict[str, Any], tokens: int) -> tuple[dict[str, Any], mx.array]:
        """Gradients of a loss summed over so many tokens -> those of its mean, bounded; and their length before that.

        Args:
            gradients: what :meth:`gather` made of them.

        Returns:
            The same tree, in the same types, and a float32 scalar.
        """
        return self._mean(gradients, mx.array(tokens, mx.float32))

    def apply(self, gradients: dict[str, Any]) -> None:
        """Change the model's weights, in place, by what :meth:`mean` gave."""
        weights = self._model.trainable_parameters()
        new = self._apply(gradients, self.gather(weights))
        self._model.update(unpack(new["packed"], weights) if self._packs else new)

    @cached_property
    def _mean(self) -> Callable[[dict[str, Any], mx.array], tuple[dict[str, Any], mx.array]]:
        return mx.compile(self._mean_of) if self._fuses else self._mean_of

    @cached_property
    def _apply(self) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
        """Made with the first update, because a resumed training gives the optimizer another state before it."""
        state = self._optimizer.state
        applies: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = self._optimizer.apply_gradients
        return mx.compile(applies, inputs=state, outputs=state) if self._fuses else applies

    def _mean_of(self, gradients: dict[str, Any], tokens: mx.array) -> tuple[dict[str, Any], mx.array]:
        gradients = tree_map(lambda x: (x / tokens).astype(x.dtype), gradients)
        norm = mx.sqrt(sum(x.astype(mx.float32).square().sum() for _, x in tree_flatten(gradients)))
        if self._max_norm is None:
            return gradients, norm
        factor = mx.minimum(self._max_norm / (norm + 1e-6), 1.0)
        return tree_map(lambda x: (x * factor).astype(x.dtype), gradients), norm
