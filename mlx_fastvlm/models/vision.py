"""FastViTHD, FastVLM's vision tower, in its inference form (FastVLM paper, section 3.2).

A hybrid of convolutions and attention: a stem at stride 4, three stages of RepMixer blocks and two of self-attention,
each stage at half the resolution of the one before, then a wide depthwise convolution with squeeze-and-excitation.
A 1024 x 1024 image leaves as 16 x 16 = 256 tokens of 3072 channels.

Everything is channels last, and the training form's branches, BatchNorms and layer scales are gone
(``checkpoints/reparameterize.py``). The 1x1 convolutions, 87% of the arithmetic, are ``nn.Linear``: that is MLX's
fastest matrix product, and the only form that can be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints.reparameterize import gate_width
from .activations import GELU
from .threads import end_streams_with_thread

if TYPE_CHECKING:
    from ..config import VisionConfig


class DepthwiseConv2d(nn.Module):
    """A convolution of each input channel on its own, with one or two output channels for each input channel.

    Args:
        in_channels, out_channels: ``out_channels`` is ``in_channels`` or twice that; outputs 2c and 2c + 1 then see
            input c, as in a PyTorch convolution with ``groups=in_channels``.
        kernel_size: side of the square kernel in pixels, odd; the padding keeps (stride 1) or halves (stride 2) sizes.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((out_channels, kernel_size, kernel_size, 1))
        if bias:
            self.bias = mx.zeros((out_channels,))
        self._stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, in_channels) -> (batch, height / stride, width / stride, out_channels)."""
        y = self.convolve(x)
        return y + self.bias if "bias" in self else y

    def convolve(self, x: mx.array) -> mx.array:
        """The same without the bias."""
        return mx.conv2d(x, self.weight, self._stride, self.weight.shape[1] // 2, groups=x.shape[-1])


class Stem(nn.Module):
    """Image -> first features, at stride 4: a dense 3x3, a depthwise 3x3 (stride 2 each) and a 1x1.

    timm's ``convolutional_stem``; FastViT, section 3.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=3, stride=2, padding=1)
        self.depthwise = DepthwiseConv2d(channels, channels, kernel_size=3, stride=2)
        self.pointwise = nn.Linear(channels, channels)
        self.act = GELU()

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, 3) -> (batch, height / 4, width / 4, channels)."""
        x = self.act(self.conv(x))
        x = self.act(self.depthwise(x))
        return self.act(self.pointwise(x))


class Downsample(nn.Module):
    """Half the resolution, double the width: a 7x7 convolution with two outputs per channel, then a 1x1.

    timm's ``PatchEmbed`` of FastViT.

    Args:
        activate_between: whether an activation follows the first convolution, as in the released models.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, activate_between: bool = True) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(in_channels, out_channels, kernel_size, stride=2)
        self.act_between = GELU() if activate_between else nn.Identity()
        self.pointwise = nn.Linear(out_channels, out_channels)
        self.act = GELU()

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, in_channels) -> (batch, height / 2, width / 2, out_channels)."""
        x = self.act_between(self.depthwise(x))
        return self.act(self.pointwise(x))


class GatedDownsample(Downsample):
    """The same with a squeeze-and-excitation behind the first convolution (timm's ``se_downsamples``)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, activate_between: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, activate_between)
        self.se = SqueezeExcite(out_channels, gate_width(out_channels))

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, in_channels) -> (batch, height / 2, width / 2, out_channels)."""
        x = self.act_between(self.se(self.depthwise(x)))
        return self.act(self.pointwise(x))


class ConvMlp(nn.Module):
    """A 7x7 depthwise convolution for spatial context, then a two-layer perceptron for each pixel.

    timm's ``ConvMlp`` of FastViT, with its BatchNorm and the layer scale behind it folded in.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv = DepthwiseConv2d(channels, channels, kernel_size=7, bias=False)  # its bias is in fc1's
        self.fc1 = nn.Linear(channels, hidden)
        self.act = GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, channels) -> the same shape."""
        return self.fc2(self.act(self.fc1(self.conv(x))))


class Attention(nn.Module):
    """Multi-head self-attention over all pixels, heads of 32 channels (timm's ``Attention`` of FastViT)."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self._head_dim = head_dim
        self._scale = head_dim**-0.5

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, channels) -> the same shape."""
        return self.proj(self.mix(self.qkv(x).flatten(1, 2)).reshape(x.shape))

    def mix(self, qkv: mx.array) -> mx.array:
        """Queries, keys and values, (batch, pixels, 3 * channels) -> (batch, pixels, channels)."""
        batch, pixels, _ = qkv.shape
        q, k, v = qkv.reshape(batch, pixels, 3, -1, self._head_dim).transpose(2, 0, 3, 1, 4)
        return self.attend(q, k, v).transpose(0, 2, 1, 3).reshape(batch, pixels, -1)

    def attend(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Scaled dot-product attention; all are (batch, heads, pixels, head_dim)."""
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self._scale)


class RepMixerBlock(nn.Module):
    """FastViT's block for high resolutions: tokens are mixed by a depthwise convolution that holds its own skip.

    timm's ``RepMixerBlock``; FastViT, section 3.1.
    """

    def __init__(self, channels: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.token_mixer = DepthwiseConv2d(channels, channels, kernel_size)
        self.mlp = ConvMlp(channels, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, channels) -> the same shape."""
        x = self.token_mixer(x)
        return x + self.mlp(x)


class AttentionBlock(nn.Module):
    """FastViT's block for low resolutions: pre-norm self-attention, then the convolutional perceptron.

    timm's ``AttentionBlock``; FastViT, section 3.2.
    """

    def __init__(self, channels: int, hidden: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.token_mixer = Attention(channels, head_dim)
        self.mlp = ConvMlp(channels, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, channels) -> the same shape."""
        x = x + self.token_mixer(self.norm(x))
        return x + self.mlp(x)


class Stage(nn.Module):
    """One of the tower's stages: downsampling (all but the first), position convolution (attention ones), blocks.

    timm's ``FastVitStage``; FastVLM paper, figure 2.
    """

    def __init__(self, config: VisionConfig, index: int) -> None:
        super().__init__()
        channels = config.embed_dims[index]
        hidden = int(channels * config.mlp_ratios[index])
        if config.downsamples[index]:
            kind = GatedDownsample if config.se_downsamples[index] else Downsample
            self.downsample = kind(config.embed_dims[index - 1], channels, config.down_patch_size, config.lkc_use_act)
        if position := config.pos_embs_shapes[index]:
            self.pos_emb = DepthwiseConv2d(channels, channels, position[0])
        self.blocks: list[nn.Module]
        if config.token_mixers[index] == "attention":
            self.blocks = [AttentionBlock(channels, hidden, config.head_dim) for _ in range(config.layers[index])]
        else:
            self.blocks = [
                RepMixerBlock(channels, hidden, config.repmixer_kernel_size) for _ in range(config.layers[index])
            ]

    def __call__(self, x: mx.array, checkpoint: bool = False) -> mx.array:
        """(batch, height, width, channels before) -> (batch, height, width, channels), half the sides if it halves.

        Args:
            checkpoint: keep nothing of the blocks for the gradients but their inputs.
        """
        if "downsample" in self:
            x = self.downsample(x)
        if "pos_emb" in self:
            x = self.pos_emb(x)
        for block in self.blocks:
            x = nn.utils.checkpoint(block)(x) if checkpoint else block(x)
        return x


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the mean of all channels (timm's ``SqueezeExcite``).

    Args:
        width: channels inside.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, width)
        self.fc2 = nn.Linear(width, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, channels) -> the same shape."""
        return x * mx.sigmoid(self.gate(x))

    def gate(self, x: mx.array) -> mx.array:
        """(batch, height, width, channels) -> (batch, 1, 1, channels), before the sigmoid."""
        return self.gate_of(self.means(x))

    def gate_of(self, means: mx.array) -> mx.array:
        """The same from the channels' means, (batch, 1, 1, channels)."""
        return self.fc2(mx.maximum(self.fc1(means), 0))

    def means(self, x: mx.array) -> mx.array:
        """Each channel's mean, (batch, 1, 1, channels): a sum of 256 pixels or more, which 16 bits are too few for."""
        return x.astype(mx.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)


class FinalConv(nn.Module):
    """The tower's last layer: a 3x3 convolution to the feature width, squeeze-and-excitation, GELU.

    timm's ``final_conv``; Apple's ``conv_exp``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(in_channels, out_channels, kernel_size=3)
        self.se = SqueezeExcite(out_channels, out_channels // 16)
        self.act = GELU()

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, height, width, in_channels) -> (batch, height, width, out_channels)."""
        return self.act(self.se(self.depthwise(x)))


@dataclass
class VisionOutput:
    """What :class:`FastViTHD` returns. All channels last, in the tower's dtype.

    Attributes:
        last_hidden_state: (images, height / 64, width / 64, channels), the features that the projector takes.
        pooler_output: (images, channels), their mean over the image (timm's ``global_pool="avg"``).
        hidden_states: the stages' outputs, stem side first, at strides 4, 8, 16, ...; None unless asked for.
    """

    last_hidden_state: mx.array
    pooler_output: mx.array
    hidden_states: tuple[mx.array, ...] | None = None


class FastViTHD(nn.Module):
    """The vision tower (timm's ``fastvit_mci3`` at inference; FastVLM paper, section 3.2 and figure 2).

    It is an image encoder of its own: ``FastViTHD(config)(pixel_values).pooler_output`` is one vector an image.

    Attributes:
        gradient_checkpointing: while training, forget what the blocks computed and compute it again for the gradients.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.stem = Stem(config.embed_dims[0])
        self.stages = [Stage(config, index) for index in range(len(config.layers))]
        self.final_conv = FinalConv(config.embed_dims[-1], config.hidden_size)
        self._patch_size = config.patch_size

    @property
    def dtype(self) -> mx.Dtype:
        """What the tower computes in. Taken from a layer that is never quantized."""
        return self.stem.conv.weight.dtype

    def __call__(self, pixel_values: mx.array, output_hidden_states: bool = False) -> VisionOutput:
        """Encode images.

        Args:
            pixel_values: (images, height, width, 3), any float dtype, RGB in [0, 1]; sides multiples of 64.
            output_hidden_states: also return each stage's feature map.

        Raises:
            ValueError: for any other shape, and for integers, which are levels of 0 to 255: only a processor knows how
                to scale and normalize those.
        """
        hidden_states = self._outputs(self.first_stages(pixel_values, 0), self.stages)
        x = self.final_conv(hidden_states[-1])
        pooled = x.astype(mx.float32).mean(axis=(1, 2)).astype(x.dtype)
        return VisionOutput(x, pooled, tuple(hidden_states) if output_hidden_states else None)

    def first_stages(self, pixel_values: mx.array, count: int) -> mx.array:
        """What the stem and so many stages make of images, (images, height, width, channels).

        Raises:
            ValueError: as for a call.
        """
        if not mx.issubdtype(pixel_values.dtype, mx.floating):
            raise ValueError(
                f"pixel_values must be floats as a processor makes them, got {pixel_values.dtype}; make them with "
                "processor(images=...), or of levels from 0 to 255 with processor.to_pixel_values(levels)."
            )
        if pixel_values.ndim != 4 or pixel_values.shape[-1] != 3:
            raise ValueError(
                f"pixel_values must have shape (images, height, width, 3), got {tuple(pixel_values.shape)}."
            )
        _, height, width, _ = pixel_values.shape
        if not height or not width or height % self._patch_size or width % self._patch_size:
            raise ValueError(
                f"The sides of pixel_values must be multiples of {self._patch_size} pixels, got {height} x {width}."
            )
        end_streams_with_thread()
        x = self.stem(pixel_values.astype(self.dtype))
        return [x, *self._outputs(x, self.stages[:count])][-1]

    def last_stages(self, x: mx.array, count: int) -> mx.array:
        """The features of images, from what all but the last ``count`` stages made of them."""
        last = self.stages[len(self.stages) - count :]
        return self.final_conv([x, *self._outputs(x, last)][-1])

    def _outputs(self, x: mx.array, stages: list[Stage]) -> list[mx.array]:
        outputs = []
        for stage in stages:
            x = stage(x, checkpoint=self.gradient_checkpointing and self.training)
            outputs.append(x)
        return outputs
