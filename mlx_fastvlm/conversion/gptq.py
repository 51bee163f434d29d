"""Calibrated rounding (GPTQ, arXiv 2210.17323): each column's rounding error is made up for by the columns after it.

Conversations about images are run through the decoder, layer by layer. The second moments of what a matrix is given
say how much an error in one column of it can be undone by others: that is what the inverse's Cholesky factor holds. A
matrix is rounded column by column, and what is lost goes into the columns that are still to come. The codes have the
same grid as plain rounding, so that the result is as large and as fast, and any reader of MLX's format takes it.

Layers behind see what the rounded ones before them give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..models.masks import plain_mask

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor

# Conversations about images as the decoder is given them, each (1, length, hidden size).
Calibration = Callable[["FastVlmForConditionalGeneration", "FastVlmProcessor"], list[mx.array]]
Packed = tuple[mx.array, mx.array, mx.array]  # codes, scales, biases

DAMPING = 0.01  # of the mean second moment, added to each channel's, so that few conversations do
# A decoder layer's matrices that see the same input, in the order in which they run.
TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def calibrated(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    modules: dict[str, dict[str, Any]],
    types: dict[str, mx.Dtype],
    calibration: Calibration,
    progress: Callable[[str, int, int], None],
) -> dict[str, Packed]:
    """The matrices of the decoder's layers, rounded.

    Args:
        model: plain, in float32; used up, layer by layer.
        modules: how each is to be quantized, in mode "affine".
        types: of each module's weight, which its scales and biases are to have too.
        progress: is told ("calibrating", 1, layers) after each layer.

    Returns:
        By the names of the modules, codes (outputs, inputs * bits / 32) in uint32, and scales and biases (outputs,
        groups).

    Raises:
        ValueError, OSError: for conversations that can't be had.
    """
    inputs = calibration(model, processor)
    mx.eval(inputs)
    del model.vision_tower, model.multi_modal_projector
    found: dict[str, Packed] = {}
    layers: list[Any] = model.language_model.layers
    for i, window in enumerate(model.config.text_config.windows):
        moments = _moments(layers[i], inputs, window)
        for names in TOGETHER:
            factor = None
            for name in names:
                full = f"language_model.layers.{i}.{name}"
                if full not in modules:  # the group size does not divide its width
                    continue
                factor = _factor(moments[names[0]]) if factor is None else factor
                part, attribute = _place(layers[i], name)
                layer, how = part[attribute], modules[full]
                found[full] = rounded(layer.weight.astype(types[full]), factor, how)
                codes, scales, biases = found[full]
                layer.weight = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), **how)
                mx.eval(found[full], layer.weight)
        inputs = [layers[i](x, plain_mask(x.shape[1], None, window)) for x in inputs]
        mx.eval(inputs)
        layers[i] = None
        mx.clear_cache()
        progress("calibrating", 1, len(layers))
    return found


class _Watched:
    """A linear layer, and the sum of its inputs' products, (inputs, inputs)."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.moments = layer, mx.array(0.0)

    def __call__(self, x: mx.array) -> mx.array:
        tokens = x.flatten(0, -2)
        self.moments = self.moments + tokens.T @ tokens
        y: mx.array = self.layer(x)
        return y


def _place(layer: Any, name: str) -> tuple[Any, str]:
    """The part of a decoder layer that has a matrix, and its name there."""
    part, attribute = name.split(".")
    return layer[part], attribute


def _moments(layer: Any, inputs: list[mx.array], window: int | None) -> dict[str, mx.array]:
    """Of what the first matrix of each of ``TOGETHER`` is given."""
    watched = {}
    for first, *_ in TOGETHER:
        part, attribute = _place(layer, first)
        watched[first] = part[attribute] = _Watched(part[attribute])
    for x in inputs:
        mx.eval(layer(x, plain_mask(x.shape[1], None, window)), [watch.moments for watch in watched.values()])
    for first, watch in watched.items():
        part, attribute = _place(layer, first)
        part[attribute] = watch.layer
    return {first: watch.moments for first, watch in watched.items()}


def _factor(moments: mx.array) -> np.ndarray:
    """The upper Cholesky factor of the damped inverse, (inputs, inputs), float64."""
    damped = np.array(moments, np.float64)
    channels = np.arange(len(damped))
    mean = damped[channels, channels].mean()
    damped[channels, channels] += DAMPING * mean if mean > 0 else 1
    factor: np.ndarray = np.linalg.cholesky(np.linalg.inv(damped)).T
    return factor


def rounded(weight: mx.array, factor: np.ndarray, how: dict[str, Any]) -> Packed:
    """A matrix (outputs, inputs) in codes, group by group, each with the scale and bias that MLX gives it then."""
    size, bits = how["group_size"], how["bits"]
    rest = np.array(weight.astype(mx.float32), np.float64)
    codes = np.zeros(rest.shape, np.uint8)
    scales, biases = [], []
    for start in range(0, rest.shape[1], size):
        group = slice(start, start + size)
        _, scale, bias = mx.quantize(mx.array(rest[:, group].astype(np.float32)).astype(weight.dtype), size, bits)
        scales.append(scale)
        biases.append(bias)
        codes[:, group], errors = _round_group(rest[:, group], factor[group, group], scale, bias, bits)
        rest[:, group.stop :] -= errors @ factor[group, group.stop :]
    return packed(codes, bits), mx.concatenate(scales, axis=1), mx.concatenate(biases, axis=1)


def _round_group(
    rest: np.ndarray, factor: np.ndarray, scale: mx.array, bias: mx.array, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a group's columns, and what each lost, in units of its place on the factor's diagonal."""
    step, least = (np.array(x.astype(mx.float32), np.float64)[:, 0] for x in (scale, bias))
    step = np.where(step == 0, 1, step)  # all of the group's weights are 0
    rest, codes, errors = rest.copy(), np.zeros(rest.shape, np.uint8), np.zeros(rest.shape)
    for i in range(rest.shape[1]):
        codes[:, i] = np.clip(np.round((rest[:, i] - least) / step), 0, 2**bits - 1)
        errors[:, i] = (rest[:, i] - (codes[:, i] * step + least)) / factor[i, i]
        rest[:, i + 1 :] -= np.outer(errors[:, i], factor[i, i + 1 :])
    return codes, errors


def packed(codes: np.ndarray, bits: int) -> mx.array:
    """Codes (outputs, inputs) as MLX packs them: ``bits`` each, one after the other from the lowest bit on."""
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(len(codes), -1)
    return mx.array(np.packbits(stream, axis=-1, bitorder="little").view("<u4"))
