"""The networks' activations: as functions, and as the layers that a faster form can take the place of (``forms.py``).

MLX's own (``nn.gelu``, ...) are compiled functions, for which MLX runs the system's C++ compiler where it computes on a
Linux CPU. These are not; on a GPU the compiled ones take their place (``gpu.py``).
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn


def gelu(x: mx.array) -> mx.array:
    """GELU, x Phi(x) (arXiv 1606.08415). Any shape, float."""
    return 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU's approximation by tanh, in the same paper. Any shape, float."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def silu(x: mx.array) -> mx.array:
    """SiLU, x sigmoid(x). Any shape, float."""
    return x * mx.sigmoid(x)


class GELU(nn.Module):
    """:func:`gelu` as a layer."""

    def __call__(self, x: mx.array) -> mx.array:
        return gelu(x)


class GELUTanh(nn.Module):
    """:func:`gelu_tanh` as a layer."""

    def __call__(self, x: mx.array) -> mx.array:
        return gelu_tanh(x)


class SiLU(nn.Module):
    """:func:`silu` as a layer."""

    def __call__(self, x: mx.array) -> mx.array:
        return silu(x)


class ReLU(nn.Module):
    """max(x, 0) as a layer."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0)


# By the names of transformers' ACT2FN.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": GELU,
    "gelu_new": GELUTanh,
    "gelu_pytorch_tanh": GELUTanh,
    "relu": ReLU,
    "silu": SiLU,
}
