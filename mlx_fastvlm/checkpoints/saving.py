"""A model in memory -> a checkpoint: what the converter does with files, for one that was trained or changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers import Tokenizer

from ..files import atomic_folder, write_json, write_tensors
from ..processing.saving import write_processor
from . import quantization
from .targets import LAYOUTS, TARGETS
from .weights import Weights

if TYPE_CHECKING:
    from ..config import FastVlmConfig
    from ..processing.processor import FastVlmProcessor


def save(
    model: nn.Module,
    config: FastVlmConfig,
    folder: str | Path,
    *,
    layout: str = "mlx",
    processor: FastVlmProcessor | None = None,
    force: bool = False,
) -> None:
    """Write a model, and with ``processor`` all that ``load`` needs, to a new folder.

    Args:
        model: a FastVLM of this config, with its head or without.
        layout: "mlx", which holds every model; "transformers", for its ``from_pretrained``; or "mlx-vlm", for that and
            mlx-swift-lm.
        processor: its tokenizer, template and image settings are written beside the weights. transformers' layout
            needs one where the model's image placeholder is no token (Apple's), since one has to be added.
        force: replace ``folder`` if it has content.

    Raises:
        FileExistsError: ``folder`` has content, and ``force`` is not set.
        ValueError: for another layout; for layers that are not a FastVLM's of this config, which could not be loaded;
            and for what the layout can't hold, such as quantized weights in transformers' layout, or there a
            placeholder that is no token.
    """
    modules = quantization.modules_of(model)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    target = TARGETS.get(layout)
    if target:
        target.check(config, modules)
    headless = not getattr(model, "has_head", True)
    if headless and layout == "mlx-vlm" and not config.tie_word_embeddings:
        raise ValueError("mlx-vlm has no model without a head; save a FastVlmForConditionalGeneration instead.")
    tied = config.tie_word_embeddings if headless else "lm_head" not in model
    weights = Weights(dict(tree_flatten(model.parameters())), modules, tied, "mlx-fastvlm")
    _check_layers(model, weights, config)
    config = replace(
        config,
        tie_word_embeddings=weights.tied,
        quantization=quantization.config_entry(modules),
        dtype=str(weights.stored_dtype).removeprefix("mlx.core."),
    )
    with atomic_folder(Path(folder), force=force) as unfinished:
        if target:
            weights, described = target.export(weights, config, processor, unfinished)
        else:
            described = config.to_dict()
            if processor is not None:
                tokenizer = Tokenizer.from_str(processor.tokenizer.to_str())
                write_processor(unfinished, tokenizer, processor, processor.chat_template)
        if headless and not tied:
            described["architectures"] = ["FastVlmModel"]  # or the head would be taken for the embedding
        write_tensors(unfinished, weights.tensors, made_for=target.made_for if target else "mlx")
        write_json(unfinished / "config.json", described)


def _check_layers(model: nn.Module, weights: Weights, config: FastVlmConfig) -> None:
    """``ValueError`` where a model of this class and config would not have the same parameters."""
    fresh = type(model)(replace(config, tie_word_embeddings=weights.tied))  # type: ignore[call-arg]  # any FastVLM's
    quantization.quantize_modules(fresh, weights.modules)
    mx.eval(mx.random.state[0])  # type: ignore[index]  # or it would remember the random weights, never computed
    expected = dict(tree_flatten(fresh.parameters()))
    added = [name for name in weights.tensors if name not in expected]
    if added:
        raise ValueError(
            f"The model has {len(added)} parameters that no FastVLM has ({_some(added)}); fuse the adapters into the "
            "layers first, then save it."
        )
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    wrong = [name for name, tensor in expected.items() if shapes.get(name) != tensor.shape]
    if wrong:
        raise ValueError(
            f"{len(wrong)} parameters are not as the model's config says ({_some(wrong)}); correct the config."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
