"""PEFT's adapter folders (``adapter_config.json``, ``adapter_model.safetensors``), for LoRA and DoRA of linear layers.

PEFT's matrices are transposed, its names are transformers', and its ``lora_alpha`` is scale times rank.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import UsageError, short
from ..files import atomic_file, read_safetensors, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m"}
# transformers' fast_vlm, its form of before 4.52, and LLaVA's training code; the first is what is written.
NAMES = (
    ("model.language_model.layers.", "language_model.layers."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head", "lm_head"),
    ("language_model.model.layers.", "language_model.layers."),
    ("model.layers.", "language_model.layers."),
    ("model.mm_projector.0", "multi_modal_projector.linear_1"),
    ("model.mm_projector.2", "multi_modal_projector.linear_2"),
)
# Options that change what an adapter computes, and what they are where they don't.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (False,),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, {}, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change the base's weights
}


def read_peft_tensors(folder: Path) -> dict[str, mx.array]:
    """The tensors of a folder by this package's names, matrices as it has them.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are broken, or of layers that are not known.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; save the adapter as safetensors, pickles are not read.")
    tensors, _ = read_safetensors(path)
    return {our_name(name, path): _transposed(tensor) for name, tensor in tensors.items()}


def our_name(name: str, path: Path) -> str:
    """This package's name for one of PEFT's."""
    layer, part = _split(name.removeprefix(PREFIX))
    for theirs, ours in NAMES:
        if part is not None and layer.startswith(theirs):
            return f"{ours}{layer[len(theirs) :]}.{PARTS[part]}"
    raise ValueError(
        f"{path} has a tensor {short(name)}; only LoRA and DoRA of the decoder's and the projector's linear layers are "
        "read."
    )


def _split(name: str) -> tuple[str, str | None]:
    name = re.sub(r"\.default(?=\.|$)", "", name).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
    part = next((part for part in PARTS if name.endswith(f".{part}")), None)
    return (name, None) if part is None else (name[: -len(part) - 1], part)


def from_peft(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """PEFT's config as mlx-lm's, of adapters with these tensors.

    Args:
        names: the tensors', this package's.

    Raises:
        UsageError: it is no LoRA, or one with options that change what it computes and that are not known here.
    """
    if content.get("peft_type") != "LORA":
        raise UsageError(f"PEFT's {short(content.get('peft_type'))} is not read; LoRA and DoRA are.")
    for name, harmless in UNSUPPORTED.items():
        if name in content and content[name] not in harmless:
            raise UsageError(f"PEFT's {name} = {short(content[name])} is not read; merge the adapter with PEFT.")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**20:
            raise UsageError(f"{name} must be a number above 0, and below a million, got {short(value)}.")
    assert isinstance(rank, (int, float))
    assert isinstance(alpha, (int, float))
    scale = alpha / (math.sqrt(rank) if content.get("use_rslora") else rank)
    keys = sorted({name.rpartition(".")[0] for name in names})
    parameters = {"rank": rank, "scale": scale, "dropout": content.get("lora_dropout", 0.0), "keys": keys}
    kind = "dora" if content.get("use_dora") else "lora"
    return {"fine_tune_type": kind, "num_layers": -1, "lora_parameters": parameters}


def write_peft(folder: Path, config: Any, tensors: dict[str, mx.array], base: str | None = None) -> None:
    """Write adapters in PEFT's layout, for transformers' model; ``PeftModel.from_pretrained`` loads them.

    Args:
        config: an ``AdapterConfig`` of "lora" or "dora".
        tensors: by this package's names.
        base: the name of the model that they belong to.

    Raises:
        UsageError: for weights of full fine-tuning, and adapters in the tower, whose layers are others there.
    """
    if config.fine_tune_type == "full":
        raise UsageError("PEFT's layout is for adapters; write the weights of full fine-tuning as a checkpoint.")
    theirs = {_their_name(name): _transposed(tensor) for name, tensor in tensors.items()}
    layers = sorted({_split(name.removeprefix(PREFIX))[0] for name in theirs})
    content = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.rank * config.scale,
        "lora_dropout": config.dropout,
        "use_dora": config.fine_tune_type == "dora",
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": layers,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS) as unfinished:
        mx.save_safetensors(str(unfinished), theirs, {"format": "pt"})
    with atomic_file(folder / CONFIG) as unfinished:
        write_json(unfinished, content)


def _their_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    their_part = next(theirs for theirs, ours in PARTS.items() if ours == part)
    for theirs, ours in NAMES:
        if layer.startswith(ours):
            return f"{PREFIX}{theirs}{layer[len(ours) :]}.{their_part}"
    raise UsageError(f"PEFT's layout has no name for {layer}; fuse the adapters, or train without it.")


def _transposed(tensor: mx.array) -> mx.array:
    return mx.contiguous(tensor.T) if tensor.ndim == 2 else tensor
