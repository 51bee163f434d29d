"""Adapters -> the layers they lie around."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoints import quantization
from ..models.forms import specialize
from ..models.lora import adapters_of, plain_weight


def fuse_adapters(model: nn.Module, *, dequantize: bool = False) -> list[str]:
    """Add a model's adapters to the matrices of their layers, in place: it computes the same, and has none any more.

    Args:
        model: a FastVLM with adapters.
        dequantize: unpack the whole model first if it is quantized.

    Returns:
        The names of the layers that had adapters.

    Raises:
        ValueError: for adapters on quantized layers without ``dequantize``: rounding their sum to few bits again would
            lose most of what was trained.
    """
    adapters = adapters_of(model)
    packed = [name for name, adapter in adapters.items() if "scales" in adapter.linear]
    if packed and not dequantize:
        raise ValueError(
            f"{packed[0]} is quantized, and rounding it again would lose most of the adapter; dequantize the model "
            "(--dequantize), and quantize the result if it has to be small."
        )
    fused = []
    for name, adapter in adapters.items():
        dtype = adapter.linear.scales.dtype if "scales" in adapter.linear else adapter.linear.weight.dtype
        fused.append((name, _linear(adapter.adapted_weight().astype(dtype), adapter.linear)))
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(model)
    specialize(model)
    mx.eval(model.parameters())
    return list(adapters)


def dequantize_model(model: nn.Module):
    """Unpack a model's quantized layers, in place, to the type of their scales."""
    plain: list[tuple[str, nn.Module]] = []
    for name, layer in model.named_modules():
        if "scales" not in layer:
            continue
        weight = plain_weight(layer).astype(layer.scales.dtype)
        plain.append((name, _embedding(weight) if isinstance(layer, nn.QuantizedEmbedding) else _linear(weight, layer)))
    model.update_modules(tree_unflatten(plain))
    specialize(model)


def quantize_model(model: nn.Module, bits: int, group_size: int | None = None) -> list[str]:
    """Quantize a plain model's decoder, in place, as the converter does; the modules that the group does not divide."""
    chosen = quantization.plan(dict(tree_flatten(model.parameters())), bits=bits, group_size=group_size)
    quantization.quantize_modules(model, chosen.modules)
    specialize(model)
    return chosen.kept


def _linear(weight: mx.array, like: nn.Module) -> nn.Linear:
    """A plain linear layer with this matrix, and the bias of another."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = weight
    if "bias" in like:
        layer.bias = like.bias
    layer.train(like.training)
    return layer


def _embedding(weight: mx.array) -> nn.Embedding:
    layer = nn.Embedding(1, 1)
    layer.weight = weight
    return layer
