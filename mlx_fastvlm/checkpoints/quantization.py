"""What is quantized in a checkpoint, and how its config says so.

``config.json`` carries mlx-lm's ``quantization`` entry: ``{"group_size": 64, "bits": 4, "mode": "affine"}``, and below
the same key, by module name, the settings of single modules; this package's converter lists them all. The tensors
decide which modules are quantized: those that have ``scales``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import UsageError, require

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


def settings(
    tensors: dict[str, mx.array], module: str, quantization: dict[str, Any] | None, source: str
) -> dict[str, Any]:
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
    possible = chosen["group_size"] in (16, *GROUP_SIZES) and chosen["bits"] in BITS
    if not possible or not isinstance(chosen["mode"], str):
        raise ValueError(
            f"config.json says that {source} is quantized as {chosen}, which MLX can't read; convert it again."
        )
    _check_parts(tensors, module, chosen["mode"], source)
    # The number of bits can be read off the shapes; a config that says otherwise would decode to noise.
    packed, groups = tensors[f"{module}.weight"].shape[-1], tensors[f"{module}.scales"].shape[-1]
    bits = packed * 32 / (groups * chosen["group_size"])
    if bits != chosen["bits"]:
        raise ValueError(
            f"{source} is stored with {bits:g} bits a weight, but config.json says {chosen['bits']} bits in groups of "
            f"{chosen['group_size']}; convert it again."
        )
    return chosen


def _check_parts(tensors: dict[str, mx.array], module: str, mode: str, source: str) -> None:
    """``ValueError`` unless a module's parts are matrices of one height, and its biases are like its scales."""
    weight, scales = tensors[f"{module}.weight"], tensors[f"{module}.scales"]
    biases = tensors.get(f"{module}.biases", scales if mode != "affine" else None)
    fits = weight.dtype == mx.uint32 and weight.ndim == scales.ndim == 2 and weight.shape[0] == scales.shape[0]
    if not fits or scales.size == 0 or biases is None or biases.shape != scales.shape:
        parts = {name: tensors.get(f"{module}.{name}") for name in ("weight", "scales", "biases")}
        said = ", ".join(f"{name} {'missing' if x is None else tuple(x.shape)}" for name, x in parts.items())
        raise ValueError(f"{source} is not a matrix quantized by MLX ({said}); download it, or convert it again.")


def quantized_modules(
    tensors: dict[str, mx.array], quantization: dict[str, Any] | None, sources: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The settings of every quantized module among ``tensors``; scales that belong to no weight are passed over.

    Args:
        sources: each tensor's name in the checkpoint, by its name here.
    """
    modules = (name.removesuffix(".scales") for name in tensors if name.endswith(".scales"))
    return {
        module: settings(tensors, module, quantization, sources[f"{module}.scales"].removesuffix(".scales"))
        for module in modules
        if f"{module}.weight" in tensors
    }


def quantize_modules(model: nn.Module, modules: dict[str, dict[str, Any]]) -> None:
    """Give the model quantized layers, with these settings, where a checkpoint has them."""
    if modules:
        nn.quantize(model, class_predicate=lambda path, _: modules.get(path, False))


def dequantized(tensors: dict[str, mx.array], modules: dict[str, dict[str, Any]]) -> dict[str, mx.array]:
    """The tensors with these modules' weights unpacked to float32. Nothing is computed yet."""
    tensors = dict(tensors)
    for module, how in modules.items():
        parts: list[Any] = [tensors.pop(f"{module}.scales"), tensors.pop(f"{module}.biases", None)]
        if how["mode"] == "affine":  # in the type of its scales, of which a product needs more digits than they have
            parts = [part.astype(mx.float32) for part in parts]
        weight = mx.dequantize(tensors[f"{module}.weight"], *parts, **how)
        tensors[f"{module}.weight"] = weight.astype(mx.float32)
    return tensors


# Bits and group size of the modes that fix them (OCP's microscaling formats, NVIDIA's); "affine" leaves both open.
FIXED = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
SENSITIVE_BITS = 8


def check_scheme(bits: int | None, group_size: int | None, mode: str, mixed: bool = False) -> tuple[int, int]:
    """Bits and group size as they are taken, None being the mode's own; ``UsageError`` for what MLX can't do."""
    require(isinstance(mode, str) and mode in ("affine", *FIXED), f"q_mode must be affine or {', '.join(FIXED)}", mode)
    if mixed and mode in FIXED:
        raise UsageError(f"q_mixed needs q_mode affine, got {mode}.")
    chosen = []
    for name, value, usual, possible in zip(
        ("q_bits", "q_group_size"), (bits, group_size), FIXED.get(mode, (4, 64)), (BITS, GROUP_SIZES)
    ):
        if mode in FIXED and value not in (None, usual):
            raise UsageError(f"q_mode {mode} has {name} {usual} only, got {value}; leave {name} out.")
        value = usual if value is None else value
        whole = isinstance(value, int) and not isinstance(value, bool)
        possible = (usual,) if mode in FIXED else possible
        require(whole and value in possible, f"{name} must be one of {', '.join(map(str, possible))}", value)
        chosen.append(value)
    return chosen[0], chosen[1]


@dataclass
class Plan:
    """What a conversion quantizes.

    Attributes:
        modules: settings by module name.
        kept: modules left in full precision because the group size does not divide their width.
    """

    modules: dict[str, dict[str, Any]]
    kept: list[str]


def plan(
    tensors: dict[str, mx.array],
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    vision: bool = False,
    mixed: bool = False,
) -> Plan:
    """Choose what to quantize, and how.

    The decoder's matrices are quantized, its embedding and head among them; the vision side only with ``vision``,
    and there the linear layers and the projector.

    Args:
        tensors: plain weights by this package's names; only their shapes matter.
        bits, group_size: None is the mode's own, or 4 and 64.
        mixed: ``SENSITIVE_BITS`` for what suffers most from few bits: embedding and head, the first and the last
            decoder layer, and every ``down_proj``.

    Raises:
        UsageError: for settings that MLX can't do.
    """
    bits, group_size = check_scheme(bits, group_size, mode, mixed)
    sides = ("language_model.", "lm_head.") + (("vision_tower.", "multi_modal_projector.") if vision else ())
    widths = {
        name.removesuffix(".weight"): tensor.shape[1]
        for name, tensor in sorted(tensors.items())
        if name.startswith(sides) and name.endswith(".weight") and tensor.ndim == 2
    }
    layers = {int(name.split(".")[2]) for name in widths if name.startswith("language_model.layers.")}
    edges = (f"language_model.layers.{min(layers)}.", f"language_model.layers.{max(layers)}.")
    modules, kept = {}, []
    for name, width in widths.items():
        if width % group_size:
            kept.append(name)
            continue
        sensitive = name in ("language_model.embed_tokens", "lm_head") or name.endswith(".down_proj")
        high = mixed and (sensitive or name.startswith(edges))
        modules[name] = {"group_size": group_size, "bits": SENSITIVE_BITS if high else bits, "mode": mode}
    return Plan(modules, kept)


def quantized(
    tensors: dict[str, mx.array],
    modules: dict[str, dict[str, Any]],
    packed_before: Mapping[str, tuple[mx.array, ...]] = {},
) -> dict[str, mx.array]:
    """The tensors with these modules' weights packed, or as they were packed before. Nothing is computed yet."""
    tensors = dict(tensors)
    for module, how in modules.items():
        packed = packed_before.get(module) or mx.quantize(tensors[f"{module}.weight"], **how)
        tensors |= {f"{module}.{part}": tensor for part, tensor in zip(("weight", "scales", "biases"), packed)}
    return tensors


def config_entry(modules: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """``config.json``'s ``quantization``: the commonest settings, as mlx-lm reads them, then every module's own."""
    if not modules:
        return None
    common = Counter(tuple(sorted(how.items())) for how in modules.values()).most_common(1)[0][0]
    return {**dict(common), **modules}


def modules_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The settings of every quantized module, by name."""
    return {
        name: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for name, module in model.named_modules()
        if "scales" in module
    }
