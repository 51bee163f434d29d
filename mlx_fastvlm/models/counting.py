"""How many weights a model has."""

from __future__ import annotations

import mlx.nn as nn
from mlx.utils import tree_flatten


def count_parameters(model: nn.Module, only_trainable: bool = False) -> int:
    """Weights, packed ones counted one by one; scales and offsets of packed ones are none."""
    packed = {name: module.bits for name, module in model.named_modules() if "scales" in module}
    total = 0
    for name, tensor in tree_flatten(model.trainable_parameters() if only_trainable else model.parameters()):
        module, _, part = name.rpartition(".")
        if module not in packed or part == "bias":
            total += tensor.size
        elif part == "weight":
            total += tensor.size * 32 // packed[module]
    return total
