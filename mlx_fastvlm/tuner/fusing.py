"""Adapters -> the layers they lie around."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoints import quantization
from ..models.forms import specialize
from ..models.lora import EMBEDDING, LoRALinear, adapters_of, plain_weight

MOST_LOST = 0.25  # of an adapter, by rounding


def fuse_adapters(model: nn.Module, *, dequantize: bool = False, force: bool = False) -> list[str]:
    """Add a model's adapters to the matrices of their layers, in place: it computes the same, and has none any more.

    Quantized layers are rounded again, to as many bits. What that loses is measured first (:func:`lost_by_rounding`).

    Args:
        model: a FastVLM with adapters.
        dequantize: unpack the whole model first if it is quantized; nothing is rounded then.
        force: round, whatever it loses.

    Returns:
        The names of the layers that had adapters.

    Raises:
        ValueError: rounding would lose more of the adapters than ``MOST_LOST``; the model is as it was.
    """
    adapters = adapters_of(model)
    if not dequantize and not force and (lost := lost_by_rounding(model)) > MOST_LOST:
        raise ValueError(
            f"Rounding the sum to few bits again would lose {min(lost, 1):.0%} of the adapters; dequantize the model "
            "(--dequantize), and quantize the result if it has to be small, or round all the same (--force)."
        )
    fused = [(name, _fused(adapter, dequantize)) for name, adapter in adapters.items()]
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(model)
    specialize(model)
    mx.eval(model.parameters())
    return list(adapters)


def lost_by_rounding(model: nn.Module) -> float:
    """What fusing into quantized layers would lose: the length of all that rounding changes, against the adapters'.

    0 is nothing, and from 1 on rounding adds more noise than the adapters have to say.
    """
    changed, added = mx.array(0.0), mx.array(0.0)
    for adapter in adapters_of(model).values():
        if "scales" in adapter.linear:
            exact = adapter.adapted_weight()
            changed = changed + (plain_weight(_fused(adapter, False)) - exact).square().sum()
            added = added + (exact - plain_weight(adapter.linear)).square().sum()
            mx.eval(changed, added)
    return float(mx.sqrt(changed / mx.maximum(added, 1e-30)).item())  # type: ignore[arg-type]  # a real one


def _fused(adapter: LoRALinear, dequantize: bool) -> nn.Module:
    """A layer without its adapter, quantized as it was unless that is to end."""
    like = adapter.linear
    packed = "scales" in like
    layer = _plain_layer(adapter.adapted_weight().astype(like.scales.dtype if packed else like.weight.dtype), like)
    if not packed or dequantize:
        return layer
    quantized: nn.Module = layer.to_quantized(like.group_size, like.bits, like.mode)
    return quantized


def dequantize_model(model: nn.Module) -> None:
    """Unpack a model's quantized layers, in place, to the type of their scales."""
    plain: list[tuple[str, nn.Module]] = []
    for name, layer in model.named_modules():
        if "scales" not in layer:
            continue
        weight = plain_weight(layer).astype(layer.scales.dtype)
        plain.append((name, _plain_layer(weight, layer)))
    model.update_modules(tree_unflatten(plain))
    specialize(model)


def quantize_model(model: nn.Module, bits: int, group_size: int | None = None) -> list[str]:
    """Quantize a plain model's decoder, in place, as the converter does; the modules that the group does not divide."""
    chosen = quantization.plan(dict(tree_flatten(model.parameters())), bits=bits, group_size=group_size)
    quantization.quantize_modules(model, chosen.modules)
    specialize(model)
    return chosen.kept


def _plain_layer(weight: mx.array, like: nn.Module) -> nn.Linear | nn.Embedding:
    """An embedding or a linear layer with this matrix, as another is, whose bias it has."""
    if isinstance(like, EMBEDDING):
        embedding = nn.Embedding(1, 1)
        embedding.weight = weight
        return embedding
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = weight
    if "bias" in like:
        layer.bias = like.bias
    layer.train(like.training)
    return layer
