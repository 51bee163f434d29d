"""Reparameterisation: a tower as it was trained or published -> the plain convolutions and linear layers of vision.py.

FastViT trains with several parallel branches, each ending in BatchNorm, where inference needs one convolution
(FastViT, arXiv 2303.14189, section 3; RepVGG, arXiv 2101.03697). Published checkpoints have the branches merged, but
keep the BatchNorm of each perceptron's 7x7 convolution and the layer scales. All of it is linear, so it folds exactly:

- branches: kernels, padded to one size, add up; a skip is a kernel with a single one in the middle;
- BatchNorm after a convolution: its scale goes into the kernel, its shift becomes the bias;
- in a perceptron that bias moves on through ``fc1``, so that the 7x7 convolution needs none;
- layer scale goes into the rows of the linear layer before it.

Everything is computed in float32, whatever the checkpoint's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from ..config import VisionConfig

BATCH_NORM_EPS = 1e-5


class _Incomplete(Exception):
    """Tensors of one module are missing or have the wrong shape; they have been noted."""


class _Weights:
    """The tower's canonical tensors, handed out once each; what is wrong with them is collected."""

    def __init__(self, tensors: dict[str, mx.array]) -> None:
        self.left = dict(tensors)
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, shapes: dict[str, tuple[int, ...]]) -> list[mx.array]:
        """The named tensors in float32; those with the given number of elements only are reshaped."""
        missing = [name for name in shapes if name not in self.left]
        self.missing += missing
        taken = []
        for name, shape in shapes.items():
            if name in self.left:
                tensor = self.left.pop(name)
                # A 1x1 convolution's (out, 1, 1, in) and a layer scale's (1, 1, channels) are plain matrices here.
                if tuple(n for n in tensor.shape if n != 1) != tuple(n for n in shape if n != 1):
                    self.misshapen.append(f"{name} {tuple(tensor.shape)} instead of {shape}")
                else:
                    taken.append(tensor.astype(mx.float32).reshape(shape))
        if len(taken) < len(shapes):
            raise _Incomplete
        return taken


def _batch_norm(weights: _Weights, name: str, channels: int) -> tuple[mx.array, mx.array]:
    """A BatchNorm at inference as (scale, shift), each (channels,)."""
    keys = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = weights.take({f"{name}.{key}": (channels,) for key in keys})
    scale = gamma * mx.rsqrt(variance + BATCH_NORM_EPS)
    return scale, beta - mean * scale


def _conv_norm(weights: _Weights, name: str, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """A convolution without bias and its BatchNorm, as (kernel, bias)."""
    (kernel,) = weights.take({f"{name}.conv.weight": shape})
    scale, shift = _batch_norm(weights, f"{name}.bn", shape[0])
    return kernel * scale[:, None, None, None], shift


def _identity_kernel(shape: tuple[int, ...]) -> mx.array:
    """The (out, height, width, in per group) kernel that passes its input on; out = in."""
    out, height, width, per_group = shape
    kernel = mx.zeros(shape)
    channel = mx.arange(out)
    kernel[channel, height // 2, width // 2, channel % per_group] = 1.0
    return kernel


def _centred(kernel: mx.array, size: int) -> mx.array:
    """A kernel padded with zeros to ``size`` x ``size``."""
    pad = (size - kernel.shape[1]) // 2
    return mx.pad(kernel, [(0, 0), (pad, pad), (pad, pad), (0, 0)])


def _branched_conv(weights: _Weights, name: str, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """A MobileOne block or a large-kernel convolution, merged or in branches, as (kernel, bias).

    ``shape`` is the merged kernel's, (out, size, size, in per group).
    """
    out, size, _, per_group = shape
    single = (out, 1, 1, per_group)
    branches: list[tuple[mx.array, mx.array]] = []

    def add(branch: str, kernel_shape: tuple[int, ...]) -> None:
        if f"{name}.{branch}.conv.weight" in weights:
            kernel, bias = _conv_norm(weights, f"{name}.{branch}", kernel_shape)
            branches.append((_centred(kernel, size), bias))

    index = 0
    while f"{name}.conv_kxk.{index}.conv.weight" in weights:
        add(f"conv_kxk.{index}", shape)
        index += 1
    add("large_conv", shape)
    add("small_conv", (out, 3, 3, per_group))
    add("conv_scale", single)
    if f"{name}.identity.weight" in weights:
        scale, shift = _batch_norm(weights, f"{name}.identity", out)
        branches.append((_identity_kernel(shape) * scale[:, None, None, None], shift))
    if not branches:
        kernel, bias = weights.take({f"{name}.reparam_conv.weight": shape, f"{name}.reparam_conv.bias": (out,)})
        return kernel, bias
    kernels, biases = zip(*branches)
    return sum(kernels[1:], kernels[0]), sum(biases[1:], biases[0])


Named = Iterator[tuple[str, mx.array]]


def _conv(weights: _Weights, source: str, target: str, shape: tuple[int, ...]) -> Named:
    kernel, bias = _branched_conv(weights, source, shape)
    yield f"{target}.weight", kernel
    yield f"{target}.bias", bias


def _pointwise(weights: _Weights, source: str, target: str, width: int) -> Named:
    """A 1x1 convolution, as a linear layer."""
    kernel, bias = _branched_conv(weights, source, (width, 1, 1, width))
    yield f"{target}.weight", kernel.reshape(width, width)
    yield f"{target}.bias", bias


def _rep_mixer(weights: _Weights, source: str, target: str, shape: tuple[int, ...]) -> Named:
    """x + scale * (mixer(x) - norm(x)) as one convolution (FastViT, equation 3)."""
    if f"{source}.layer_scale.gamma" in weights:
        (scale,) = weights.take({f"{source}.layer_scale.gamma": shape[:1]})
        mixer, mixer_bias = _branched_conv(weights, f"{source}.mixer", shape)
        norm, norm_bias = _branched_conv(weights, f"{source}.norm", shape)
        kernel = _identity_kernel(shape) + scale[:, None, None, None] * (mixer - norm)
        bias = scale * (mixer_bias - norm_bias)
    else:
        kernel, bias = _branched_conv(weights, source, shape)
    yield f"{target}.weight", kernel
    yield f"{target}.bias", bias


def _position(weights: _Weights, source: str, target: str, shape: tuple[int, ...]) -> Named:
    """x + conv(x) as one convolution."""
    if f"{source}.pos_enc.weight" in weights:
        kernel, bias = weights.take({f"{source}.pos_enc.weight": shape, f"{source}.pos_enc.bias": shape[:1]})
        kernel = kernel + _identity_kernel(shape)
    else:
        kernel, bias = _branched_conv(weights, source, shape)
    yield f"{target}.weight", kernel
    yield f"{target}.bias", bias


def _mlp(weights: _Weights, source: str, target: str, scale: str, width: int, hidden: int) -> Named:
    """The perceptron, its BatchNorm folded into its convolution and fc1, ``scale`` (a layer scale) into fc2."""
    kernel, shift = _conv_norm(weights, f"{source}.conv", (width, 7, 7, 1))
    w1, b1, w2, b2, gamma = weights.take(
        {
            f"{source}.fc1.weight": (hidden, width),
            f"{source}.fc1.bias": (hidden,),
            f"{source}.fc2.weight": (width, hidden),
            f"{source}.fc2.bias": (width,),
            f"{scale}.gamma": (width,),
        }
    )
    yield f"{target}.conv.weight", kernel
    yield f"{target}.fc1.weight", w1
    yield f"{target}.fc1.bias", b1 + (w1 * shift).sum(axis=1)
    yield f"{target}.fc2.weight", w2 * gamma[:, None]
    yield f"{target}.fc2.bias", b2 * gamma


def _attention(weights: _Weights, block: str, width: int) -> Named:
    """Norm and attention of a block, its layer scale folded into the output projection."""
    norm, norm_bias, qkv, proj, proj_bias, gamma = weights.take(
        {
            f"{block}.norm.weight": (width,),
            f"{block}.norm.bias": (width,),
            f"{block}.token_mixer.qkv.weight": (3 * width, width),
            f"{block}.token_mixer.proj.weight": (width, width),
            f"{block}.token_mixer.proj.bias": (width,),
            f"{block}.layer_scale_1.gamma": (width,),
        }
    )
    yield f"{block}.norm.weight", norm
    yield f"{block}.norm.bias", norm_bias
    yield f"{block}.token_mixer.qkv.weight", qkv
    yield f"{block}.token_mixer.proj.weight", proj * gamma[:, None]
    yield f"{block}.token_mixer.proj.bias", proj_bias * gamma


def gate_width(channels: int) -> int:
    """Channels inside a downsampling's squeeze-and-excitation: a quarter, to the nearest multiple of 8 (timm)."""
    return max(8, int(channels / 4 + 4) // 8 * 8)


def _squeeze_excite(weights: _Weights, source: str, target: str, width: int, inside: int) -> Named:
    shapes = {
        "fc1.weight": (inside, width),
        "fc1.bias": (inside,),
        "fc2.weight": (width, inside),
        "fc2.bias": (width,),
    }
    taken = weights.take({f"{source}.{part}": shape for part, shape in shapes.items()})
    yield from zip((f"{target}.{part}" for part in shapes), taken)


def _modules(config: VisionConfig) -> Iterator[tuple[Callable[..., Named], tuple[Any, ...]]]:
    """The tower's modules, stem first: (how to fold, its arguments)."""
    first = config.embed_dims[0]
    yield _conv, ("stem.0", "stem.conv", (first, 3, 3, 3))
    yield _conv, ("stem.1", "stem.depthwise", (first, 3, 3, 1))
    yield _pointwise, ("stem.2", "stem.pointwise", first)
    for index, width in enumerate(config.embed_dims):
        stage = f"stages.{index}"
        hidden = int(width * config.mlp_ratios[index])
        if config.downsamples[index]:
            down, size = f"{stage}.downsample", config.down_patch_size
            yield _conv, (f"{down}.proj.0", f"{down}.depthwise", (width, size, size, 1))
            if config.se_downsamples[index]:
                yield _squeeze_excite, (f"{down}.proj.0.se", f"{down}.se", width, gate_width(width))
            yield _pointwise, (f"{down}.proj.1", f"{down}.pointwise", width)
        if position := config.pos_embs_shapes[index]:
            size = position[0]
            yield _position, (f"{stage}.pos_emb", f"{stage}.pos_emb", (width, size, size, 1))
        for number in range(config.layers[index]):
            block = f"{stage}.blocks.{number}"
            if config.token_mixers[index] == "attention":
                yield _attention, (block, width)
                yield _mlp, (f"{block}.mlp", f"{block}.mlp", f"{block}.layer_scale_2", width, hidden)
            else:
                size = config.repmixer_kernel_size
                yield _rep_mixer, (f"{block}.token_mixer", f"{block}.token_mixer", (width, size, size, 1))
                yield _mlp, (f"{block}.mlp", f"{block}.mlp", f"{block}.layer_scale", width, hidden)
    yield _conv, ("final_conv", "final_conv.depthwise", (config.hidden_size, 3, 3, 1))
    yield _squeeze_excite, ("final_conv.se", "final_conv.se", config.hidden_size, config.hidden_size // 16)


@dataclass
class ReparameterizedTower:
    """What :func:`reparameterize_tower` returns.

    Attributes:
        tensors: the folded tensors by the names of ``FastViTHD``'s parameters, float32.
        missing, unexpected: canonical names of tensors that were not there, or that have no place in the tower.
        misshapen: names with the shape they have and the one they should.
    """

    tensors: dict[str, mx.array]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def reparameterize_tower(tensors: dict[str, mx.array], config: VisionConfig) -> ReparameterizedTower:
    """Fold a tower in canonical names (see ``layouts.py``, without the leading ``vision_tower.``), channels last.

    Nothing raises here: the caller reports what is wrong together with the rest of the checkpoint.
    """
    weights = _Weights(tensors)
    fused: dict[str, mx.array] = {}
    for fold, arguments in _modules(config):
        try:
            fused.update(fold(weights, *arguments))
        except _Incomplete:
            pass  # noted in weights.missing or weights.misshapen
    return ReparameterizedTower(fused, weights.missing, list(weights.left), weights.misshapen)
