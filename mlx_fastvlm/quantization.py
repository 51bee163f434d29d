"""What is quantized in a checkpoint, and how its config says so.

``config.json`` carries mlx-lm's ``quantization`` entry: ``{"group_size": 64, "bits": 4, "mode": "affine"}``, and below
the same key, by module name, whatever deviates from it. The tensors decide which modules are quantized: those that
have ``scales``.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

BITS = (2, 3, 4, 5, 6, 8)


def settings(tensors: dict[str, mx.array], module: str, quantization: dict[str, Any] | None, source: str) -> dict:
    """How one module is quantized: ``{"group_size", "bits", "mode"}``.

    Args:
        tensors: holds ``{module}.weight``, packed as uint32, and ``{module}.scales``.
        quantization: the config's entry.
        source: the module's name in the checkpoint, under which the config may list it.

    Raises:
        ValueError: where tensors and config contradict each other.
    """
    if not quantization:
        raise ValueError(
            f"{source} is quantized, but config.json has no 'quantization' entry to say how; convert it again."
        )
    own = quantization.get(source)
    own = own if isinstance(own, dict) else {}
    chosen = {
        key: own.get(key, quantization.get(key, default))
        for key, default in (("group_size", 64), ("bits", 4), ("mode", "affine"))
    }
    # The number of bits can be read off the shapes; a config that says otherwise would decode to noise.
    packed, groups = tensors[f"{module}.weight"].shape[-1], tensors[f"{module}.scales"].shape[-1]
    bits = packed * 32 / (groups * chosen["group_size"])
    if bits != chosen["bits"]:
        raise ValueError(
            f"{source} is stored with {bits:g} bits a weight, but config.json says {chosen['bits']} bits in groups of "
            f"{chosen['group_size']}; convert it again."
        )
    return chosen


def quantized_modules(
    tensors: dict[str, mx.array], quantization: dict[str, Any] | None, sources: dict[str, str]
) -> dict[str, dict]:
    """The settings of every quantized module among ``tensors``.

    Args:
        sources: each tensor's name in the checkpoint, by its name here.
    """
    modules = (name.removesuffix(".scales") for name in tensors if name.endswith(".scales"))
    return {
        module: settings(tensors, module, quantization, sources[f"{module}.scales"].removesuffix(".scales"))
        for module in modules
    }


def quantize_modules(model: nn.Module, modules: dict[str, dict]):
    """Give the model quantized layers, with these settings, where a checkpoint has them."""
    if modules:
        nn.quantize(model, class_predicate=lambda path, _: modules.get(path, False))


def dequantized(tensors: dict[str, mx.array], modules: dict[str, dict]) -> dict[str, mx.array]:
    """The tensors with these modules' weights unpacked to float32."""
    tensors = dict(tensors)
    for module, how in modules.items():
        scales, biases = tensors.pop(f"{module}.scales"), tensors.pop(f"{module}.biases", None)
        weight = mx.dequantize(tensors[f"{module}.weight"], scales, biases, **how)
        tensors[f"{module}.weight"] = weight.astype(mx.float32)
    return tensors
