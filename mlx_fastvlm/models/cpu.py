"""Layers that compute faster on a CPU in float32, each with the parameters and the signature of a plain one.

``forms.py`` puts them in the plain ones' places. Given another type, or on another device, each does what the plain one
does. Those that go through several layers at a time call them and read nothing of them, and step aside where one was
replaced by what may do more than look at each pixel on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import mlx.core as mx
import mlx.nn as nn

from . import activations, cpu_ops, language, vision


def suits(x: mx.array) -> bool:
    """Whether ``x`` is what the forms of this file are made for."""
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu


# Linear layers


class CpuLinear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        return cpu_ops.linear(x, self, self._product) if suits(x) else super().__call__(x)

    def _product(self, x: mx.array) -> mx.array:
        """``addmm`` would write the bias out for each token first, value by value: four times as slow as the sum."""
        y = x @ self.weight.T
        return y + self.bias if "bias" in self else y


class CpuQuantizedLinear(nn.QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        plain = super().__call__
        return cpu_ops.linear(x, self, plain) if suits(x) else plain(x)


class CpuEmbedding(nn.Embedding):
    def as_linear(self, x: mx.array) -> mx.array:
        plain = super().as_linear
        return cpu_ops.linear(x, self, plain) if suits(x) else plain(x)


class CpuQuantizedEmbedding(nn.QuantizedEmbedding):
    def as_linear(self, x: mx.array) -> mx.array:
        plain = super().as_linear
        return cpu_ops.linear(x, self, plain) if suits(x) else plain(x)


# Activations


class CpuGELU(activations.GELU):
    def __call__(self, x: mx.array) -> mx.array:
        return cpu_ops.gelu(x) if suits(x) else super().__call__(x)


class CpuSiLU(activations.SiLU):
    def __call__(self, x: mx.array) -> mx.array:
        return cpu_ops.silu(x) if suits(x) else super().__call__(x)


# Layers that look at each token (or pixel) on its own; what was put in their place need not.
TOKENWISE = (nn.Linear, nn.QuantizedLinear, CpuLinear, CpuQuantizedLinear, activations.GELU, CpuGELU, nn.Identity)


def tokenwise(*layers: nn.Module) -> bool:
    return all(type(layer) in TOKENWISE for layer in layers)


def packed(*layers: nn.Module) -> bool:
    """Whether one of them is quantized: it is unpacked for all tokens at once, which are not to be cut into pieces."""
    return any("scales" in layer for layer in layers)


# The tower


class CpuDepthwiseConv2d(vision.DepthwiseConv2d):
    def __call__(self, x: mx.array) -> mx.array:
        return self.followed_by(lambda y: y, x) if suits(x) else super().__call__(x)

    def followed_by(
        self, then: Callable[[mx.array], mx.array], x: mx.array, before: cpu_ops.Before | None = None
    ) -> mx.array:
        """``then`` of the convolution, a band of rows at a time; it looks at each pixel on its own."""
        return cpu_ops.depthwise_conv2d(x, self.weight, self.get("bias"), self._stride, then, before)


def may_be_cut(conv: nn.Module, x: mx.array, *layers: nn.Module) -> TypeGuard[CpuDepthwiseConv2d]:
    """Whether a convolution of ``x`` and the layers after it may be computed a band of rows at a time."""
    return type(conv) is CpuDepthwiseConv2d and tokenwise(*layers) and suits(x)


def in_bands(conv: nn.Module, then: Callable[[mx.array], mx.array], x: mx.array, *layers: nn.Module) -> mx.array:
    """``then(conv(x))``, a band of rows at a time if that may be: ``layers`` are those that ``then`` calls."""
    if may_be_cut(conv, x, *layers):
        return conv.followed_by(then, x)
    return then(conv(x))


class CpuStem(vision.Stem):
    """All of it in bands: what the first convolution makes of an image is eight times as large as that."""

    def __call__(self, x: mx.array) -> mx.array:
        if type(self.conv) is not nn.Conv2d or not may_be_cut(self.depthwise, x, self.pointwise, self.act):
            return super().__call__(x)
        _, height, width, _ = x.shape
        before = cpu_ops.Before(-(-height // 2), -(-width // 2), self._first_rows)
        y: mx.array = self.depthwise.followed_by(lambda y: self.act(self.pointwise(self.act(y))), x, before)
        return y

    def _first_rows(self, x: mx.array, first: int, last: int) -> mx.array:
        """Rows of the first convolution's result, each of three rows of the image, after the activation."""
        _, height, width, _ = x.shape
        above, below = int(first == 0), max(2 * last - height, 0)
        rows = x[:, 2 * first - 1 + above : 2 * last]
        rows = mx.pad(rows, [(0, 0), (above, below), (1, width % 2), (0, 0)])
        return self.act(mx.conv2d(rows, self.conv.weight, self.conv.stride) + self.conv.bias)


class CpuDownsample(vision.Downsample):
    def __call__(self, x: mx.array) -> mx.array:
        inner = self.act_between, self.pointwise, self.act
        return in_bands(self.depthwise, lambda y: self.act(self.pointwise(self.act_between(y))), x, *inner)


class CpuConvMlp(vision.ConvMlp):
    def __call__(self, x: mx.array) -> mx.array:
        return in_bands(self.conv, self._perceptron, x, self.fc1, self.act, self.fc2)

    def _perceptron(self, x: mx.array) -> mx.array:
        def apply(x: mx.array) -> mx.array:
            return self.fc2(self.act(self.fc1(x)))

        if not (tokenwise(self.fc1, self.act, self.fc2) and suits(x)) or packed(self.fc1, self.fc2):
            return apply(x)
        return cpu_ops.tokenwise(x, apply, width=self.fc1.weight.shape[0])


class CpuVisionAttention(vision.Attention):
    def attend(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return cpu_ops.attention(q, k, v, self._scale) if suits(q) else super().attend(q, k, v)


# The decoder


class CpuAttention(language.Attention):
    def turn(self, x: mx.array, offset: Any, position_ids: mx.array | None) -> mx.array:
        """A token's by a product with a matrix that all layers share; else each would compute its sines and cosines."""
        if x.shape[2] > 1 or position_ids is not None or not isinstance(offset, int) or not suits(x):
            return super().turn(x, offset, position_ids)
        return x @ self._rotary.matrix(offset)

    def attend(self, q: mx.array, k: Any, v: Any, mask: mx.array | str | None, cache: Any) -> mx.array:
        if q.shape[2] == 1 or hasattr(cache, "bits") or not suits(q):
            return super().attend(q, k, v, mask, cache)
        return cpu_ops.attention(q, k, v, self._scale, mask)


class CpuMLP(language.MLP):
    def __call__(self, x: mx.array) -> mx.array:
        if not (tokenwise(self.gate_proj, self.up_proj, self.down_proj) and suits(x)):
            return super().__call__(x)
        if packed(self.gate_proj, self.up_proj, self.down_proj):
            return self._gated(x)
        return cpu_ops.tokenwise(x, self._gated, width=self.gate_proj.weight.shape[0])

    def _gated(self, x: mx.array) -> mx.array:
        return self.down_proj(cpu_ops.swiglu(x, self.gate_proj, self.up_proj))


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CpuLinear,
    nn.QuantizedLinear: CpuQuantizedLinear,
    nn.Embedding: CpuEmbedding,
    nn.QuantizedEmbedding: CpuQuantizedEmbedding,
    activations.GELU: CpuGELU,
    activations.SiLU: CpuSiLU,
    vision.DepthwiseConv2d: CpuDepthwiseConv2d,
    vision.Stem: CpuStem,
    vision.Downsample: CpuDownsample,
    vision.ConvMlp: CpuConvMlp,
    vision.Attention: CpuVisionAttention,
    language.Attention: CpuAttention,
    language.MLP: CpuMLP,
}
