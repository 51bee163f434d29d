"""A checkpoint's tensors, from any layout, under this package's names."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx

from ..errors import UsageError
from ..files import read_json, read_safetensors
from . import layouts, quantization
from .reparameterize import reparameterize_tower

if TYPE_CHECKING:
    from ..config import FastVlmConfig

Value = TypeVar("Value")

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """Every tensor of a checkpoint's safetensors files, single or sharded, not yet read from disk."""
    tensors: dict[str, mx.array] = {}
    for path in weight_files(folder):
        tensors.update(read_safetensors(path)[0])
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """A checkpoint's safetensors files: those of its index, or all but hidden ones.

    Raises:
        FileNotFoundError: there is none, or a shard is missing.
        ValueError: the index names what it must not.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        # macOS puts "._model.safetensors", which holds no tensors, beside a file on a foreign disk.
        files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("."))
        if not files:
            raise FileNotFoundError(
                f"{folder} has no safetensors file; only that format is read, so save the model in it first."
            )
        return files
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is not a valid index; download it again.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, a file outside its folder; don't trust this checkpoint.")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}; only safetensors files are read, so save the model in them.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}; download them again."
        )
    return [folder / name for name in names]


@dataclass
class Faults:
    """All that is wrong with a checkpoint's tensors, for one error that names the first few of each kind."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)

    def compare(self, tensors: dict[str, mx.array], expected: dict[str, mx.array], sources: dict[str, str]) -> None:
        missing = [name for name in expected if name not in tensors]
        if self.missing or self.misshapen:  # what folding could not make is the consequence, not the fault
            missing = list(_without_tower(dict.fromkeys(missing)))
        self.missing += missing
        self.unexpected += [sources.get(name, name) for name in tensors if name not in expected]
        self.misshapen += [
            f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            for name, tensor in tensors.items()
            if name in expected and tensor.shape != expected[name].shape
        ]
        self.mistyped += [
            f"{name} {tensor.dtype} instead of {'packed uint32' if expected[name].dtype == mx.uint32 else 'floats'}"
            for name, tensor in tensors.items()
            if name in expected and not _same_kind(tensor.dtype, expected[name].dtype)
        ]

    def report(self, folder: Path) -> None:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in vars(self).items()
            if names
        ]
        if parts:
            raise ValueError(
                f"The tensors in {folder} do not fit its config.json: {'; '.join(parts)}. Download the checkpoint "
                "again, or correct its config."
            )


def _same_kind(found: mx.Dtype, expected: mx.Dtype) -> bool:
    """Whether both are floats, which are cast where they differ, or the same packed integers."""
    return found == expected or (mx.issubdtype(found, mx.floating) and mx.issubdtype(expected, mx.floating))


@dataclass
class Weights:
    """A checkpoint's tensors under this package's names, folded, and what they say about themselves.

    Attributes:
        tensors: by the names of ``FastVlmForConditionalGeneration``'s parameters; nothing is computed yet.
        modules: how each quantized module is quantized (see ``quantization.settings``).
        tied: whether the head is the embedding.
        layout: the name of the layout they came in.
        folder: where they came from, for errors; "." for a model in memory.
        sources: each tensor's name in its file, by its name here.
        faults: what was wrong with them while they were read; a model that is built of them reports it.
    """

    tensors: dict[str, mx.array]
    modules: dict[str, dict[str, Any]]
    tied: bool
    layout: str
    folder: Path = Path()
    sources: dict[str, str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    @property
    def stored_dtype(self) -> mx.Dtype:
        """What the decoder's plain weights are stored in."""
        return self.tensors["language_model.norm.weight"].dtype


def read_weights(
    folder: Path, config: FastVlmConfig, vision_from: Path | None = None, headless: bool = False
) -> Weights:
    """A checkpoint's weights in this package's form. Whether they fit its config shows when a model is built of them.

    Args:
        vision_from: the folder of another checkpoint, of the same tower, whose tower is taken instead.
        headless: for a model without a head: leave that out, and miss none.

    Raises:
        ValueError: where there is no tower, or a quantized tensor contradicts the config.
    """
    tensors, sources, layout = _canonical(folder, config)
    tower_layout = layout
    if vision_from is not None:
        donor, donor_sources, tower_layout = _canonical(vision_from, config)
        tensors = _without_tower(tensors) | _tower(donor)
        sources = _without_tower(sources) | _tower(donor_sources)
    if not tower_layout.has_tower:
        raise ValueError(
            f"{vision_from or folder} is {tower_layout.name}: its vision tower is missing, since a Core ML package "
            "beside it holds that; take the tower from another checkpoint with "
            "`convert.py --vision-from apple/FastVLM-0.5B`."
        )
    if headless:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")}
    elif not config.tie_word_embeddings and not (layout.has_head and _has_head(tensors, config)):
        raise ValueError(
            f"{folder} was saved from a FastVlmModel, without the head, and its config.json does not tie that to the "
            "embedding; save a FastVlmForConditionalGeneration instead."
        )
    tied = config.tie_word_embeddings if headless else _is_tied(tensors, config, folder)
    if tied:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")}
    modules = quantization.quantized_modules(tensors, config.quantization, sources)
    faults = Faults()
    if not tower_layout.folded:
        # Folding needs plain weights. The released mlx-vlm files leave the tower alone, but it may be quantized too.
        packed = _tower(modules)
        modules = _without_tower(modules)
        fused = reparameterize_tower(
            _unprefixed(quantization.dequantized(_tower(tensors), packed)), config.vision_config
        )
        faults.missing += [TOWER + name for name in fused.missing]
        faults.unexpected += [sources[TOWER + name] for name in fused.unexpected]
        faults.misshapen += [TOWER + name for name in fused.misshapen]
        tensors = _without_tower(tensors) | {TOWER + name: tensor for name, tensor in fused.tensors.items()}
    return Weights(tensors, modules, tied, layout.name, folder, sources, faults)


TOWER = "vision_tower."


def _tower(named: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in named.items() if name.startswith(TOWER)}


def _without_tower(named: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in named.items() if not name.startswith(TOWER)}


def _unprefixed(named: dict[str, Value]) -> dict[str, Value]:
    return {name.removeprefix(TOWER): value for name, value in named.items()}


def _canonical(folder: Path, config: FastVlmConfig) -> tuple[dict[str, mx.array], dict[str, str], layouts.Layout]:
    """A checkpoint's tensors by canonical name, channels last, the names they had, and their layout."""
    tensors = read_tensors(folder)
    layout = layouts.detect(tensors)
    names = layouts.canonical_names(layout, tensors, config.vision_config)
    if not layout.channels_last:
        tensors = {
            name: tensor.transpose(0, 2, 3, 1) if tensor.ndim == 4 else tensor for name, tensor in tensors.items()
        }
    return {new: tensors[old] for old, new in names.items()}, {new: old for old, new in names.items()}, layout


def _has_head(tensors: dict[str, mx.array], config: FastVlmConfig) -> bool:
    """Whether there is a head, or whoever wrote the file meant the embedding by leaving it out."""
    return config.extra.get("architectures") != ["FastVlmModel"] or any(x.startswith("lm_head.") for x in tensors)


def _is_tied(tensors: dict[str, mx.array], config: FastVlmConfig, folder: Path) -> bool:
    """Whether the head is the embedding. The weights decide: configs in the wild say both things of both kinds."""
    parts = [name.removeprefix("lm_head.") for name in tensors if name.startswith("lm_head.")]
    tied = all(_same(tensors[f"lm_head.{part}"], tensors.get(f"language_model.embed_tokens.{part}")) for part in parts)
    if tied != config.tie_word_embeddings:
        found = "has no lm_head of its own" if tied else "has an lm_head that differs from its embedding"
        warnings.warn(
            f"config.json in {folder} says tie_word_embeddings: {str(config.tie_word_embeddings).lower()}, but the "
            f"checkpoint {found}; going by the weights.",
            stacklevel=2,
        )
    return tied


def _same(a: mx.array, b: mx.array | None) -> bool:
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    # Untied heads differ in their first rows already, which saves reading gigabytes.
    return bool(mx.array_equal(a[:8], b[:8])) and bool(mx.array_equal(a, b))


def choose_dtype(dtype: str | mx.Dtype) -> mx.Dtype:
    """A type by its name; ``UsageError`` for one that weights can't have."""
    chosen = DTYPES.get(str(dtype).removeprefix("mlx.core."))
    if chosen is None:
        raise UsageError(f"dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}.")
    return chosen


def cast(tensors: dict[str, mx.array], dtype: mx.Dtype) -> dict[str, mx.array]:
    """The tensors in ``dtype``, packed integers as they are, the vision side never in float16."""
    vision_dtype = mx.bfloat16 if dtype == mx.float16 else dtype
    vision = ("vision_tower.", "multi_modal_projector.")
    return {
        name: tensor.astype(vision_dtype if name.startswith(vision) else dtype)
        if mx.issubdtype(tensor.dtype, mx.floating)
        else tensor
        for name, tensor in tensors.items()
    }
