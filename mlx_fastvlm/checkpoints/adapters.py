"""Adapter folders, as mlx-lm reads and writes them: ``adapter_config.json`` and ``adapters.safetensors``.

The config says which layers have adapters and of what rank; the tensors are ``lora_a``, (inputs, rank), ``lora_b``,
(rank, outputs), and for DoRA ``m``, (outputs,), each behind its layer's name; of an embedding (words, rank), (rank,
width) and (words,). Of ``"fine_tune_type": "full"`` they are the trained weights themselves. PEFT's folders are read
too (``peft.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import UsageError, require, require_whole
from ..files import atomic_file, read_json, read_safetensors, write_json
from . import peft

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
KINDS = ("lora", "dora", "full")
LARGEST = 1e300


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained, and how; mlx-lm's names and defaults.

    Attributes:
        fine_tune_type: "lora", "dora", or "full", which trains the layers themselves.
        num_layers: of the decoder's layers, so many from the end; -1 is all, 0 is none.
        rank: of the two matrices of an adapter.
        scale: what their product is multiplied with (others' alpha / rank).
        dropout: how much of an adapter's input is left out at random while it is trained.
        keys: the linear layers and embeddings that are meant: by their names in a decoder layer ("self_attn.q_proj"),
            or in the whole model ("multi_modal_projector.linear_1"), which ``num_layers`` is not about. None is all of
            a decoder layer.

    Raises:
        UsageError: for a value that an option can't have.
    """

    fine_tune_type: str = "lora"
    num_layers: int = 16
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(self.fine_tune_type in KINDS, f"fine_tune_type must be one of {', '.join(KINDS)}", self.fine_tune_type)
        for name, least in (("num_layers", -1), ("rank", 1)):
            value = getattr(self, name)
            require_whole(name, value)
            require(least <= value < 2**20, f"{name} must be at least {least}", value)
        require(_is_number(self.scale) and abs(self.scale) < 1e6, "scale must be a number below a million", self.scale)
        require(_is_number(self.dropout) and 0 <= self.dropout < 1, "dropout must be from 0 to below 1", self.dropout)
        names = self.keys is None or all(isinstance(key, str) and key for key in self.keys)
        require(names, "keys must be names of layers", self.keys)

    def to_dict(self) -> dict[str, Any]:
        """``adapter_config.json``'s content."""
        keys = None if self.keys is None else list(self.keys)
        parameters = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, "keys": keys}
        return {
            "fine_tune_type": self.fine_tune_type,
            "num_layers": self.num_layers,
            "lora_parameters": None if self.fine_tune_type == "full" else parameters,
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> AdapterConfig:
        """The config in a JSON object; what else mlx-lm writes there is passed over."""
        parameters = config.get("lora_parameters") or {}
        if not isinstance(parameters, dict):
            raise UsageError("lora_parameters must be an object of rank, scale, dropout and keys.")
        if "alpha" in parameters and "scale" not in parameters:
            raise UsageError("lora_parameters has alpha and no scale; give scale, which is alpha / rank.")
        given = {name: parameters[name] for name in ("rank", "scale", "dropout") if name in parameters}
        keys = parameters.get("keys")
        if keys is not None:
            require(isinstance(keys, (list, tuple)), "keys must be a list of names of layers", keys)
            given["keys"] = tuple(keys)
        given |= {name: config[name] for name in ("fine_tune_type", "num_layers") if name in config}
        return cls(**given)


def _is_number(value: object) -> bool:
    # compared, since a whole number of hundreds of digits is no float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no adapter.
        ValueError: the file is broken.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; give a folder that lora or PEFT wrote (--adapter-path).")
    content = read_json(folder / CONFIG)
    try:
        if "peft_type" in content:
            content = peft.from_peft(content, list(peft.read_peft_tensors(folder)))
        return AdapterConfig.from_dict(content)
    except UsageError as error:
        raise ValueError(f"{folder / CONFIG} is broken: {error}") from None


def is_peft(folder: Path) -> bool:
    """Whether an adapter folder is PEFT's."""
    return "peft_type" in read_json(folder / CONFIG)


def read_adapter_tensors(folder: Path) -> dict[str, mx.array]:
    """An adapter's tensors, each finite.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is broken, or holds numbers that are none.
    """
    path = folder / WEIGHTS
    if is_peft(folder):
        path, tensors = folder / peft.WEIGHTS, peft.read_peft_tensors(folder)
    elif not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; training that saved nothing leaves such a folder.")
    else:
        tensors, _ = read_safetensors(path)
    check_finite(tensors, path)
    return tensors


def check_finite(tensors: dict[str, mx.array], path: Path) -> None:
    """``ValueError`` that names the tensors that are NaN or infinite, if any."""
    finite = {name: mx.isfinite(tensor).all() for name, tensor in tensors.items()}
    mx.eval(list(finite.values()))
    broken = sorted(name for name, is_finite in finite.items() if not is_finite.item())
    if broken:
        more = ", ..." if len(broken) > 3 else ""
        raise ValueError(
            f"{len(broken)} of {len(tensors)} tensors in {path} are not finite ({', '.join(broken[:3])}{more}): the "
            "training went wrong; take an earlier one."
        )


def write_adapter(folder: Path, config: AdapterConfig, tensors: dict[str, mx.array]) -> None:
    """Write a folder's two files, each whole or not at all; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter_tensors(folder / WEIGHTS, tensors)
    with atomic_file(folder / CONFIG) as unfinished:
        write_json(unfinished, config.to_dict())


def write_adapter_tensors(path: Path, tensors: dict[str, mx.array]) -> None:
    """One safetensors file."""
    with atomic_file(path) as unfinished:
        mx.save_safetensors(str(unfinished), tensors, {"format": "mlx"})
