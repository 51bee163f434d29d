"""Layers that take fewer kernels on a GPU, each with the parameters and the signature of a plain one.

``forms.py`` puts them in the plain ones' places. They are right in every type and on every device. Those that read the
parameters of layers inside step aside where such a layer was replaced.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import activations, language, vision


class GpuGELU(activations.GELU):
    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(x)


class GpuGELUTanh(activations.GELUTanh):
    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu_approx(x)


class GpuSiLU(activations.SiLU):
    def __call__(self, x: mx.array) -> mx.array:
        return nn.silu(x)


class GpuDepthwiseConv2d(vision.DepthwiseConv2d):
    """Metal has a fast kernel for exactly one output per group: two outputs are two such convolutions."""

    def convolve(self, x: mx.array) -> mx.array:
        per_input = self.weight.shape[0] // x.shape[-1]
        if per_input == 1:
            return super().convolve(x)
        how: dict[str, Any] = {"stride": self._stride, "padding": self.weight.shape[1] // 2, "groups": x.shape[-1]}
        outputs = [mx.conv2d(x, self.weight[i::per_input], **how) for i in range(per_input)]
        return mx.stack(outputs, axis=-1).flatten(-2)


@mx.compile
def two_sums(x: mx.array, y: mx.array, z: mx.array) -> tuple[mx.array, mx.array]:
    """``x + y`` and ``x + y + z``, shapes that broadcast, in one kernel, which reads x once."""
    xy = x + y
    return xy, xy + z


def add_matmul(x: mx.array, y: mx.array, layer: nn.Module) -> mx.array:
    """``x`` + the matrix of a linear layer times ``y``, without its bias; x (..., outputs), y (..., inputs)."""
    if "scales" in layer:
        packed = layer.weight, layer.scales, layer.get("biases"), True, layer.group_size, layer.bits, layer.mode
        return x + mx.quantized_matmul(y, *packed)
    # Rows as one matrix: over a batch of them it would be a product each.
    return mx.addmm(x.flatten(0, -2), y.flatten(0, -2), layer.weight.T).reshape(x.shape)


def _plain_end(mlp: nn.Module) -> bool:
    """Whether the perceptron ends with a matrix and a bias that can be added on their own."""
    return type(mlp) is vision.ConvMlp and type(mlp.fc2) in (nn.Linear, nn.QuantizedLinear) and "bias" in mlp.fc2


def _onto(skip: mx.array, mlp: vision.ConvMlp, x: mx.array) -> mx.array:
    """``skip``, which has the perceptron's last bias, + the perceptron of ``x``: the sum is inside its last product."""
    return add_matmul(skip, mlp.act(mlp.fc1(mlp.conv(x))), mlp.fc2)


class GpuRepMixerBlock(vision.RepMixerBlock):
    def __call__(self, x: mx.array) -> mx.array:
        if type(self.token_mixer) is not GpuDepthwiseConv2d or not _plain_end(self.mlp):
            return super().__call__(x)
        x, skip = two_sums(self.token_mixer.convolve(x), self.token_mixer.bias, self.mlp.fc2.bias)
        return _onto(skip, self.mlp, x)


class GpuAttentionBlock(vision.AttentionBlock):
    def __call__(self, x: mx.array) -> mx.array:
        if not _plain_end(self.mlp):
            return super().__call__(x)
        x, skip = two_sums(self.token_mixer(self.norm(x)), x, self.mlp.fc2.bias)
        return _onto(skip, self.mlp, x)


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up`` in one kernel."""
    return activations.silu(gate) * up


class GpuMLP(language.MLP):
    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    activations.GELU: GpuGELU,
    activations.GELUTanh: GpuGELUTanh,
    activations.SiLU: GpuSiLU,
    vision.DepthwiseConv2d: GpuDepthwiseConv2d,
    vision.RepMixerBlock: GpuRepMixerBlock,
    vision.AttentionBlock: GpuAttentionBlock,
    language.MLP: GpuMLP,
}
