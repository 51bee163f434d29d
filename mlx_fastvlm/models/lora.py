"""Adapters: small trainable matrices beside frozen linear layers (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

They lie around the layers of any form, quantized ones too (QLoRA, arXiv 2305.14314), and around the token embedding, of
which a tied head is another use; and have mlx-lm's names.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoints.adapters import AdapterConfig, read_adapter_config, read_adapter_tensors
from ..errors import UsageError
from .forms import specialize

LINEAR = (nn.Linear, nn.QuantizedLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)


def plain_weight(linear: nn.Module) -> mx.array:
    """A layer's matrix, (outputs, inputs), unpacked if it is quantized; then in float32."""
    if "scales" not in linear:
        weight: mx.array = linear.weight
        return weight
    # Unpacked in the type of its scales, of which a product needs more digits than they have.
    parts: list[Any] = [linear.scales, linear.get("biases")]
    if linear.mode == "affine":
        parts = [part.astype(mx.float32) for part in parts]
    how: dict[str, Any] = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    return mx.dequantize(linear.weight, *parts, **how).astype(mx.float32)


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a layer's matrix, packed or not."""
    outputs, inputs = layer.weight.shape
    return outputs, inputs * 32 // layer.bits if "scales" in layer else inputs


class LoRALinear(nn.Module):
    """A frozen linear layer plus ``scale`` x @ lora_a @ lora_b. It begins as the layer itself: ``lora_b`` is zero.

    ``scale`` is an array, and frozen: what is kept for a model (prompt caches) knows it by its arrays.

    Args:
        linear: plain or quantized, of any form.
        rank, scale, dropout: see :class:`AdapterConfig`.
    """

    linear: nn.Module
    scale: mx.array
    lora_a: mx.array
    lora_b: mx.array

    _zero = "lora_b"  # the matrix that begins as zero, so that the adapter adds nothing yet

    def __init__(self, linear: nn.Module, rank: int, scale: float = 20.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = linear
        self.dropout = nn.Dropout(dropout)
        self.scale = mx.array(scale, mx.float32)
        bound = 1 / math.sqrt(matrix_shape(linear)[1])
        for name, shape in self.shapes(linear, rank).items():
            self[name] = mx.zeros(shape) if name == self._zero else mx.random.uniform(-bound, bound, shape)
        self.linear.freeze()
        self.freeze(recurse=False, keys=["scale"])

    @staticmethod
    def shapes(linear: nn.Module, rank: int) -> dict[str, tuple[int, int]]:
        """Of the adapter's two matrices, by name."""
        outputs, inputs = matrix_shape(linear)
        return {"lora_a": (inputs, rank), "lora_b": (rank, outputs)}

    def __call__(self, x: mx.array) -> mx.array:
        """(..., inputs) -> (..., outputs), in the type of ``x``."""
        y: mx.array = self.linear(x)
        return y + self.update_of(x).astype(x.dtype)

    def update_of(self, x: mx.array) -> mx.array:
        """What the adapter adds, (..., outputs), float32."""
        rows = self.dropout(x).flatten(0, -2)  # as one matrix: over a batch of them it would be a product each
        inner = self.scale * (rows @ self.lora_a)  # here it has fewest values to scale
        return (inner @ self.lora_b).reshape(*x.shape[:-1], -1)

    def adapted_weight(self) -> mx.array:
        """(outputs, inputs), float32: the layer's matrix and the adapter's."""
        return plain_weight(self.linear).astype(mx.float32) + (self.scale * self.lora_b.T) @ self.lora_a.T


class DoRALinear(LoRALinear):
    """The same with the length of each row of the matrix, ``m``, as a parameter of its own.

    The gradient takes the lengths that the rows have for constants, as DoRA's authors do (section 4.3).
    """

    def __init__(self, linear: nn.Module, rank: int, scale: float = 20.0, dropout: float = 0.0) -> None:
        super().__init__(linear, rank, scale, dropout)
        self.m = mx.linalg.norm(plain_weight(linear).astype(mx.float32), axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.linear(x)
        bias = self.linear.get("bias")
        if bias is not None:
            y = y - bias
        lengths = mx.stop_gradient(mx.linalg.norm(super().adapted_weight(), axis=1))
        y = ((self.m / lengths) * (y + self.update_of(x))).astype(x.dtype)
        return y if bias is None else y + bias

    def adapted_weight(self) -> mx.array:
        weight = super().adapted_weight()
        return (self.m / mx.linalg.norm(weight, axis=1))[:, None] * weight


class LoRAEmbedding(LoRALinear):
    """A frozen embedding, (words, width), plus ``scale`` lora_a @ lora_b, where it looks up and where it is a head.

    Here ``lora_a``, (words, rank), is what begins as zero, so that each word's first step is its own.
    """

    _zero = "lora_a"

    @staticmethod
    def shapes(linear: nn.Module, rank: int) -> dict[str, tuple[int, int]]:
        words, width = matrix_shape(linear)
        return {"lora_a": (words, rank), "lora_b": (rank, width)}

    @property
    def weight(self) -> mx.array:
        """The embedding's own, as others ask it for its type."""
        weight: mx.array = self.linear.weight
        return weight

    def __call__(self, x: mx.array) -> mx.array:
        """Ids -> (..., width)."""
        y: mx.array = self.linear(x)
        return y + ((self.scale * self.lora_a[x]) @ self.lora_b).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., width) -> (..., words)."""
        y: mx.array = self.linear.as_linear(x)
        return y + ((self.scale * (self.dropout(x) @ self.lora_b.T)) @ self.lora_a.T).astype(y.dtype)

    def adapted_weight(self) -> mx.array:
        return plain_weight(self.linear).astype(mx.float32) + (self.scale * self.lora_a) @ self.lora_b


class DoRAEmbedding(LoRAEmbedding):
    """The same with the length of each word's row, ``m``, as a parameter of its own."""

    def __init__(self, linear: nn.Module, rank: int, scale: float = 20.0, dropout: float = 0.0) -> None:
        super().__init__(linear, rank, scale, dropout)
        self.m = mx.linalg.norm(plain_weight(linear).astype(mx.float32), axis=1)

    def _stretch(self) -> mx.array:
        return self.m / mx.stop_gradient(mx.linalg.norm(super().adapted_weight(), axis=1))

    def __call__(self, x: mx.array) -> mx.array:
        y = super().__call__(x)
        return (self._stretch()[x][..., None] * y).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        y = super().as_linear(x)
        return (self._stretch() * y).astype(y.dtype)

    def adapted_weight(self) -> mx.array:
        return self._stretch()[:, None] * super().adapted_weight()


LAYERS: dict[str, type[LoRALinear]] = {"lora": LoRALinear, "dora": DoRALinear}
EMBEDDINGS: dict[str, type[LoRALinear]] = {"lora": LoRAEmbedding, "dora": DoRAEmbedding}


def with_keys(
    model: nn.Module,
    config: AdapterConfig,
    *,
    projector: bool = False,
    vision: bool = False,
    vision_stages: int = -1,
    embeddings: bool = False,
) -> AdapterConfig:
    """The config for this model: no more layers than it has, and every key by its name.

    Args:
        model: a FastVLM.
        projector, vision: the projector's linear layers too; the tower's, its 1x1 convolutions among them, or only
            those of its last ``vision_stages`` stages and what follows them.
        embeddings: the token embedding too, and the head.
    """
    layers = model.language_model.layers
    keys = config.keys
    if keys is None:
        keys = tuple(name for name, layer in layers[0].named_modules() if isinstance(layer, LINEAR))
    sides = ["multi_modal_projector."] if projector else []
    sides += [f"{part}." for part in tower_parts(model, vision_stages)] if vision else []
    further = [name for name, layer in model.named_modules() if isinstance(layer, LINEAR)]
    keys += tuple(sorted(name for name in further if name.startswith(tuple(sides)) and name not in keys))
    keys += tuple(name for name in vocabulary_layers(model) if embeddings and name not in keys)
    return replace(config, keys=keys, num_layers=min(config.num_layers, len(layers)))


def tower_parts(model: nn.Module, stages: int) -> list[str]:
    """The names of the tower's last stages and what follows them; of all of it for -1."""
    count = len(model.vision_tower.stages)
    if not 0 <= stages < count:
        return ["vision_tower"]
    return [*(f"vision_tower.stages.{i}" for i in range(count - stages, count)), "vision_tower.final_conv"]


def vocabulary_layers(model: nn.Module) -> list[str]:
    """The names of the token embedding, and of a head of its own."""
    return ["language_model.embed_tokens", *(["lm_head"] if "lm_head" in model else [])]


def adapted_layers(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    """The linear layers, and embeddings, that a config means, by name.

    Raises:
        UsageError: for keys that are no such layers of this model, or no layer at all.
    """
    config = with_keys(model, config)
    named = dict(model.named_modules())
    count = len(model.language_model.layers)
    first = 0 if config.num_layers < 0 else count - config.num_layers
    found: dict[str, nn.Module] = {}
    for key in config.keys or ():
        names = [key] if key in named else [f"language_model.layers.{i}.{key}" for i in range(count)]
        if not all(isinstance(named.get(name), (*LINEAR, *EMBEDDING)) for name in names):
            raise UsageError(
                f"keys: {key!r} is not a linear layer or embedding of this model; name those of a decoder layer, such "
                "as self_attn.q_proj, or of the whole model, such as multi_modal_projector.linear_1."
            )
        found |= {name: named[name] for name in (names if key in named else names[first:])}
    if not found:
        raise UsageError("No layer is chosen; num_layers must be at least 1, or keys name layers beside the decoder's.")
    return found


def add_adapters(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Put new adapters around the layers that a config means, in place; their names.

    Raises:
        UsageError: as for :func:`adapted_layers`, and for a model that has adapters.
    """
    if adapters_of(model):
        raise UsageError("The model has adapters already; load it anew without them, or fuse them first.")
    layers = adapted_layers(model, config)
    adapters = [(name, _adapter(layer, config)) for name, layer in layers.items()]
    model.update_modules(tree_unflatten(adapters))
    for _, adapter in adapters:
        adapter.train(model.training)
    return list(layers)


def _adapter(layer: nn.Module, config: AdapterConfig) -> LoRALinear:
    return _kind(layer, config)(layer, config.rank, config.scale, config.dropout)


def _kind(layer: nn.Module, config: AdapterConfig) -> type[LoRALinear]:
    return (EMBEDDINGS if isinstance(layer, EMBEDDING) else LAYERS)[config.fine_tune_type]


def adapters_of(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of a model, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def adapter_tensors(model: nn.Module) -> dict[str, mx.array]:
    """What a file of the model's adapters holds, by name."""
    return {
        f"{name}.{part}": layer[part]
        for name, layer in adapters_of(model).items()
        for part in ("lora_a", "lora_b", "m")
        if part in layer
    }


def load_adapters(model: nn.Module, folder: str | Path) -> AdapterConfig:
    """Give a model the adapters of a folder, or the weights that full fine-tuning left there, in place.

    Args:
        model: a FastVLM without adapters, of the base that they were trained on.
        folder: see ``checkpoints/adapters.py``.

    Returns:
        The folder's config.

    Raises:
        FileNotFoundError: it holds no adapter.
        ValueError: it is broken, not finite, or belongs to another base; the model is then as it was.
    """
    if adapters_of(model):
        raise ValueError("The model has adapters already; load it anew without them, or fuse them first.")
    folder = Path(folder).expanduser()
    config = read_adapter_config(folder)
    tensors = read_adapter_tensors(folder)
    if config.fine_tune_type == "full":
        named = dict(tree_flatten(model.parameters()))
        _check(tensors, {name: named[name].shape for name in tensors if name in named}, folder)
        tensors = {name: tensor.astype(named[name].dtype) for name, tensor in tensors.items()}
    else:
        try:
            layers = adapted_layers(model, config)
        except UsageError as error:
            raise _other_base(folder, str(error)) from None
        _check(tensors, _shapes(layers, config), folder)
        add_adapters(model, config)
    model.load_weights(list(tensors.items()), strict=False)
    specialize(model)
    return config


def _shapes(layers: dict[str, nn.Module], config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        matrices = _kind(layer, config).shapes(layer, config.rank)
        shapes |= {f"{name}.{matrix}": shape for matrix, shape in matrices.items()}
        if config.fine_tune_type == "dora":
            shapes[f"{name}.m"] = matrix_shape(layer)[:1]
    return shapes


def _check(tensors: dict[str, mx.array], expected: dict[str, tuple[int, ...]], folder: Path) -> None:
    """``ValueError`` unless the tensors have these names and shapes, and numbers for values."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in expected:
            raise _other_base(folder, f"{name} is nothing that this model could take")
        if name not in tensors:
            raise _other_base(folder, f"{name} is missing")
        if tensors[name].shape != expected[name]:
            raise _other_base(
                folder, f"{name} has shape {tuple(tensors[name].shape)}, and this model takes {expected[name]}"
            )
        if not mx.issubdtype(tensors[name].dtype, mx.floating):
            raise _other_base(folder, f"{name} holds {tensors[name].dtype} and no floats")


def _other_base(folder: Path, what: str) -> ValueError:
    said = what.rstrip(".")
    return ValueError(f"The adapters in {folder} do not fit this model ({said}); load the one they were trained on.")
