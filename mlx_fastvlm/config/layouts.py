"""Each layout's ``config.json`` -> the fields of ``FastVlmConfig``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import short
from .keys import check_keys
from .text import read_text_config
from .values import as_ids, first
from .vision import read_vision_config

LLAVA_IMAGE_TOKEN = -200  # LLaVA's placeholder (IMAGE_TOKEN_INDEX): no real token, so it can clash with none


def read_apple(config: dict[str, Any]) -> dict[str, Any]:
    """Apple's llava_qwen2: decoder fields on top; also mlx-vlm's, and Apple's MLX export, of the same type."""
    tower = config.get("mm_vision_tower") or "mobileclip_l_1024"
    size = re.search(r"_(\d+)$", tower)
    vision = read_vision_config({"image_size": int(size[1]) if size else 1024, **(config.get("vision_config") or {})})
    if config.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
        raise ValueError(
            f"mm_hidden_size is {config['mm_hidden_size']}, but the vision tower {tower!r} gives {vision.hidden_size}."
        )
    nested = config.get("text_config") or {}  # mlx-vlm may nest a copy
    check_keys("text_config", nested)
    return {
        "vision_config": vision,
        "text_config": read_text_config({**config, **nested}),
        "image_token_id": first(config, "image_token_id", "image_token_index", default=LLAVA_IMAGE_TOKEN),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "projector_type": config.get("mm_projector_type") or "mlp2x_gelu",
        "eos_token_id": as_ids(config.get("eos_token_id")),
        "image_aspect_ratio": _aspect_ratio(config.get("image_aspect_ratio")),
        "trained_image_sizes": first(config, "trained_image_sizes", default=[]),
        "dtype": first(config, "dtype", "torch_dtype"),
        "quantization": config.get("quantization"),
    }


def _aspect_ratio(said: Any) -> Any:
    """LLaVA's ``process_images`` pads for "pad" only; for nothing, and for "square", its CLIP processor crops."""
    return "crop" if said is None or said == "square" else said


def read_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' fast_vlm, and ours, which adds how images are made square, the sizes seen and the quantization."""
    vision: Any = config.get("vision_config")
    text: Any = config.get("text_config")
    for name, value in (("vision_config", vision), ("text_config", text)):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"config.json: {name} must be an object, got {short(value)}.")
    eos = config.get("eos_token_id")
    found = {
        "vision_config": vision,
        "text_config": text,
        "image_token_id": first(config, "image_token_id", "image_token_index", default=151646),
        "tie_word_embeddings": bool(first(config, "tie_word_embeddings") or (text or {}).get("tie_word_embeddings")),
        "projector_type": config.get("mm_projector_type") or "mlp2x_gelu",
        "eos_token_id": as_ids((text or {}).get("eos_token_id") if eos is None else eos),
        "dtype": first(config, "dtype", "torch_dtype"),
        **{name: config.get(name) for name in _AS_THEY_ARE},
    }
    return {name: value for name, value in found.items() if value is not None}


_AS_THEY_ARE = (
    "projector_hidden_act",
    "vision_feature_select_strategy",
    "vision_feature_layer",
    "multimodal_projector_bias",
    "image_aspect_ratio",
    "trained_image_sizes",
    "quantization",
)

READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "llava_qwen2": read_apple,
    "fast_vlm": read_transformers,
}
