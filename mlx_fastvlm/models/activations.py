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


class GELUTanhAccurate(nn.Module):
    """GELU's approximation by tanh with a rounded constant (transformers' ``FastGELUActivation``)."""

    def __call__(self, x: mx.array) -> mx.array:
        return 0.5 * x * (1 + mx.tanh(0.7978845608 * x * (1 + 0.044715 * x * x)))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), GELU's approximation by a sigmoid, from the same paper."""

    def __call__(self, x: mx.array) -> mx.array:
        return x * mx.sigmoid(1.702 * x)


class LeakyReLU(nn.Module):
    """x where that is positive, else x / 100."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0.01 * x)


class Mish(nn.Module):
    """x tanh(softplus(x)) (arXiv 1908.08681)."""

    def __call__(self, x: mx.array) -> mx.array:
        return x * mx.tanh(mx.logaddexp(x, mx.zeros_like(x)))


class SquaredReLU(nn.Module):
    """max(x, 0) squared (arXiv 2109.08668)."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0) ** 2


class ReLU6(nn.Module):
    """x cut to between 0 and 6."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.clip(x, 0, 6)


class Sigmoid(nn.Module):
    """1 / (1 + exp(-x))."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.sigmoid(x)


class Tanh(nn.Module):
    """tanh(x)."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.tanh(x)


# By the names of transformers' ACT2FN.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": GELU,
    "gelu_accurate": GELUTanh,
    "gelu_fast": GELUTanhAccurate,
    "gelu_new": GELUTanh,
    "gelu_python": GELU,
    "gelu_python_tanh": GELUTanh,
    "gelu_pytorch_tanh": GELUTanh,
    "leaky_relu": LeakyReLU,
    "linear": nn.Identity,
    "mish": Mish,
    "quick_gelu": QuickGELU,
    "relu": ReLU,
    "relu2": SquaredReLU,
    "relu6": ReLU6,
    "sigmoid": Sigmoid,
    "silu": SiLU,
    "swish": SiLU,
    "tanh": Tanh,
}
