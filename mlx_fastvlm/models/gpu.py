"""Layers that take fewer kernels on a GPU, each with the parameters and the signature of a plain one.

``forms.py`` puts them in the plain ones' places. They are right in every type and on every device. Those that read the
parameters of layers inside step aside where such a layer was replaced.

A kernel that MLX fuses keeps every intermediate in its array's type. So 16-bit arrays become float32 inside of it,
where that costs nothing, and what comes out is rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from . import activations, depthwise, language, vision

# Sizes of heads that Metal has a fused kernel of attention for, with few queries and with many.
FUSED_HEADS = (64, 96, 128)


def _fused(function: Callable[..., mx.array], shapeless: bool = False) -> Callable[..., mx.array]:
    """An elementwise function as one kernel: float32 inside, what comes out in the first array's type."""

    def widened(*arrays: mx.array) -> mx.array:
        done = function(*(x if x.dtype == mx.bool_ else x.astype(mx.float32) for x in arrays))
        return done.astype(arrays[0].dtype)

    return mx.compile(widened, shapeless=shapeless)


gelu, gelu_tanh, silu, swiglu = (
    _fused(function, shapeless=True)
    for function in (
        activations.gelu,
        activations.gelu_tanh,
        activations.silu,
        lambda gate, up: activations.silu(gate) * up,
    )
)
gelu_of_sum = _fused(lambda x, y: activations.gelu(x + y))
# The gate before its sigmoid.
gelu_of_gated_sum = _fused(lambda x, y, gate: activations.gelu((x + y) * mx.sigmoid(gate)))
gated = _fused(lambda x, gate: x * mx.sigmoid(gate))


@mx.compile
def two_sums(x: mx.array, y: mx.array, z: mx.array) -> tuple[mx.array, mx.array]:
    """``x + y`` and ``x + y + z``, shapes that broadcast, in one kernel, which reads x once.

    Each sum is rounded: MLX would make two kernels if the second went on from what the first rounds.
    """
    xy = x + y
    return xy, xy + z


# Activations


class GpuGELU(activations.GELU):
    def __call__(self, x: mx.array) -> mx.array:
        return gelu(x)


class GpuGELUTanh(activations.GELUTanh):
    def __call__(self, x: mx.array) -> mx.array:
        return gelu_tanh(x)


class GpuSiLU(activations.SiLU):
    def __call__(self, x: mx.array) -> mx.array:
        return silu(x)


# Convolutions


# What follows a convolution, as MLX computes it, by the names of ``kernels.ENDINGS``.
ENDINGS: dict[str, Callable[..., list[mx.array]]] = {
    "plain": lambda y: [y],
    "bias": lambda y, bias: [y + bias],
    "gelu": lambda y, bias: [gelu_of_sum(y, bias)],
    "skip": lambda y, bias, more: list(two_sums(y, bias, more)),
}


@functools.cache
def _by_mlx(stride: int, ending: str) -> depthwise.Theirs:
    """MLX has a fast kernel for exactly one output per group: two outputs are two channels that are the same."""

    def convolve(x: mx.array, weight: mx.array, *more: mx.array) -> list[mx.array]:
        if weight.shape[0] == 2 * x.shape[-1]:
            # One copy; halves of the weights would be one too, and then two convolutions to put together.
            x = mx.broadcast_to(x[..., None], (*x.shape, 2)).flatten(-2)
        y = mx.conv2d(x, weight, stride, weight.shape[1] // 2, groups=x.shape[-1])
        return ENDINGS[ending](y, *more)

    return convolve


class GpuDepthwiseConv2d(vision.DepthwiseConv2d):
    """A convolution and what follows it: one own kernel, or MLX's (``depthwise.py`` chooses)."""

    def __call__(self, x: mx.array) -> mx.array:
        return self._ended(x, "bias", self.bias)[0] if "bias" in self else self.convolve(x)

    def convolve(self, x: mx.array) -> mx.array:
        return self._ended(x, "plain")[0]

    def gelu(self, x: mx.array) -> mx.array:
        """GELU of what the layer computes."""
        return self._ended(x, "gelu", self.bias)[0] if "bias" in self else gelu(self(x))

    def with_skip(self, x: mx.array, bias: mx.array) -> list[mx.array]:
        """What the layer computes, and the same and a further bias."""
        return self._ended(x, "skip", self.bias, bias)

    def _ended(self, x: mx.array, ending: str, *more: mx.array) -> list[mx.array]:
        theirs = _by_mlx(self._stride, ending)
        return depthwise.convolve(x, self.weight, self._stride, ending, list(more), theirs)


def convolved(conv: nn.Module, act: nn.Module, x: mx.array) -> mx.array:
    """``act(conv(x))``: bias and GELU in one kernel."""
    if type(act) is not GpuGELU:
        y: mx.array = act(conv(x))
        return y
    if type(conv) is GpuDepthwiseConv2d:
        return conv.gelu(x)
    if type(conv) is nn.Conv2d and "bias" in conv:
        return gelu_of_sum(mx.conv2d(x, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups), conv.bias)
    return act(conv(x))


class GpuStem(vision.Stem):
    def __call__(self, x: mx.array) -> mx.array:
        x = convolved(self.depthwise, self.act, convolved(self.conv, self.act, x))
        return self.act(self.pointwise(x))


class GpuDownsample(vision.Downsample):
    def __call__(self, x: mx.array) -> mx.array:
        return self.act(self.pointwise(convolved(self.depthwise, self.act_between, x)))


# The tower's blocks


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
        x, skip = self.token_mixer.with_skip(x, self.mlp.fc2.bias)
        return _onto(skip, self.mlp, x)


class GpuAttentionBlock(vision.AttentionBlock):
    def __call__(self, x: mx.array) -> mx.array:
        if not _plain_end(self.mlp):
            return super().__call__(x)
        x, skip = two_sums(self.token_mixer(self.norm(x)), x, self.mlp.fc2.bias)
        return _onto(skip, self.mlp, x)


def windowed_attention(qkv: mx.array, head_dim: int, width: int, scale: float) -> mx.array:
    """Self-attention by a kernel for wider heads, which none of the arrays is copied for but the queries.

    A head of keys is seen ``width`` values wide, with those that lie behind it, and the queries have zeros there. A
    head of values is seen with those that lie before it, and their means are dropped. So the result is the same.

    Args:
        qkv: (batch, tokens, 3 * channels): all heads' queries, keys, values.
        head_dim, width: of a head, and of those that the kernel takes, at most ``head_dim`` + channels.

    Returns:
        (batch, tokens, channels).
    """
    batch, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads, more = channels // head_dim, width - head_dim

    def window(first: int) -> mx.array:
        strides = (tokens * 3 * channels, head_dim, 3 * channels, 1)
        return mx.as_strided(qkv, (batch, heads, tokens, width), strides, first)

    own = mx.array([True] * head_dim + [False] * more)
    q, k, v = mx.where(own, window(0), 0), window(channels), window(2 * channels - more)
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    return y[..., more:].transpose(0, 2, 1, 3).reshape(batch, tokens, channels)


class GpuVisionAttention(vision.Attention):
    """Where Metal has no fused kernel for this size of heads, one for wider heads takes them.

    Else all scores would be in memory, 50 MB a block for an image of 1024 pixels and 12.9 GB for one of 4096.
    """

    def mix(self, qkv: mx.array) -> mx.array:
        head_dim, channels = self._head_dim, qkv.shape[-1] // 3
        width = next((wide for wide in FUSED_HEADS if wide >= head_dim), head_dim)
        if width == head_dim or width > head_dim + channels:
            return super().mix(qkv)
        return windowed_attention(qkv, head_dim, width, self._scale)


class GpuSqueezeExcite(vision.SqueezeExcite):
    def __call__(self, x: mx.array) -> mx.array:
        return gated(x, self.gate(x))

    def means(self, x: mx.array, bias: mx.array | None = None) -> mx.array:
        """As a product, whose sums are float32 in every type; a sum of 16-bit numbers is not. A bias is added to it."""
        batch, height, width, channels = x.shape
        count = height * width
        exact = 2 ** (count - 1).bit_length()  # a power of two has no rounding error
        ones, x = mx.array([[1 / exact] * count], x.dtype), x.reshape(batch, count, channels)
        if exact == count and bias is not None:
            return mx.addmm(bias, ones, x).reshape(batch, 1, 1, channels)
        mean = (ones @ x).reshape(batch, 1, 1, channels)
        mean = mean if exact == count else mean * (exact / count)
        return mean if bias is None else mean + bias


class GpuFinalConv(vision.FinalConv):
    """The convolution's bias goes into the means, and into the last kernel."""

    def __call__(self, x: mx.array) -> mx.array:
        if type(self.depthwise) is not GpuDepthwiseConv2d or type(self.act) is not GpuGELU:
            return super().__call__(x)
        if not isinstance(self.se, GpuSqueezeExcite) or "bias" not in self.depthwise:
            return super().__call__(x)
        y, bias, se = self.depthwise.convolve(x), self.depthwise.bias, self.se
        assert isinstance(se, GpuSqueezeExcite)  # as found above
        return gelu_of_gated_sum(y, bias, se.gate_of(se.means(y, bias)))


# The decoder


class GpuMLP(language.MLP):
    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    activations.GELU: GpuGELU,
    activations.GELUTanh: GpuGELUTanh,
    activations.SiLU: GpuSiLU,
    vision.DepthwiseConv2d: GpuDepthwiseConv2d,
    vision.Stem: GpuStem,
    vision.Downsample: GpuDownsample,
    vision.RepMixerBlock: GpuRepMixerBlock,
    vision.Attention: GpuVisionAttention,
    vision.AttentionBlock: GpuAttentionBlock,
    vision.SqueezeExcite: GpuSqueezeExcite,
    vision.FinalConv: GpuFinalConv,
    language.MLP: GpuMLP,
}
