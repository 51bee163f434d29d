"""A model in memory -> a checkpoint: what the converter does with files, for one that was trained or changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers import Tokenizer

from ..config import FastVlmConfig
from ..files import atomic_folder, write_tensors
from ..processing.processor import FastVlmProcessor
from . import quantization
from .export import check_projector, timm_form, to_transformers, write_processor
from .weights import Weights


def save(
    model: nn.Module,
    config: FastVlmConfig,
    folder: str | Path,
    *,
    layout: str = "mlx",
    processor: FastVlmProcessor | None = None,
    force: bool = False,
):
    """Write a model, and with ``processor`` all that ``load`` needs, to a new folder.

    Args:
        model: a FastVLM with its head, of this config.
        layout: "mlx", which also holds quantized models, or "transformers", for its ``from_pretrained``.
        processor: its tokenizer, template and picture settings are written beside the weights. transformers' layout
            needs one where the model's image placeholder is no token (Apple's), since one has to be added.
        force: replace ``folder`` if it has content.

    Raises:
        FileExistsError: ``folder`` has content, and ``force`` is not set.
        ValueError: for another layout, and for what transformers can't load: quantized weights, a projector of
            another type, a placeholder that is no token.
    """
    modules = _quantized_modules(model)
    if layout not in ("mlx", "transformers"):
        raise ValueError(f"layout must be 'mlx' or 'transformers', got {layout!r}.")
    if layout == "transformers":
        check_projector(config)
        if modules:
            raise ValueError("The model is quantized, which transformers' layout is not; save layout mlx.")
        if processor is None and not 0 <= config.image_token_id < config.text_config.vocab_size:
            raise ValueError(
                f"The image placeholder {config.image_token_id} is no token, and transformers needs one; pass the "
                "processor, to which it is added."
            )
    weights = Weights(dict(tree_flatten(model.parameters())), modules, "lm_head" not in model, "mlx-fastvlm")
    config = replace(
        config,
        tie_word_embeddings=weights.tied,
        quantization=quantization.config_entry(modules),
        dtype=str(weights.stored_dtype).removeprefix("mlx.core."),
    )
    with atomic_folder(Path(folder), force=force) as unfinished:
        if layout == "mlx":
            if processor is not None:
                tokenizer = Tokenizer.from_str(processor.tokenizer.to_str())
                write_processor(unfinished, tokenizer, processor, processor.chat_template)
        elif processor is not None:
            weights, config = to_transformers(weights, config, processor, unfinished)
        else:
            weights = replace(weights, tensors=timm_form(weights.tensors))
        write_tensors(unfinished, weights.tensors, made_for="mlx" if layout == "mlx" else "pt")
        config.save_pretrained(unfinished)


def _quantized_modules(model: nn.Module) -> dict[str, dict]:
    """The settings of every quantized module, by name."""
    return {
        name: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for name, module in model.named_modules()
        if "scales" in module
    }
