"""A checkpoint -> its model and its processor."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..config import FastVlmConfig
from ..hub import find_checkpoint
from ..processing.processor import FastVlmProcessor
from . import memory
from .depthwise import prove
from .fastvlm import FastVlmForConditionalGeneration
from .loading import load_model
from .lora import load_adapters


def load(
    path_or_repo: str | Path,
    *,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    adapter_path: str | Path | None = None,
    lazy: bool = False,
    force: bool = False,
) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """Load a FastVLM and its processor.

    Args:
        path_or_repo: a folder, a hub id such as "apple/FastVLM-0.5B", or "demo" for the small embedded one. Apple's,
            transformers', mlx-vlm's and this package's layouts load as they are. A folder never touches the network.
        dtype: "float32", "bfloat16" or "float16". By default the checkpoint's own on a GPU, and float32 on a CPU,
            where that is the fast one. The vision side never runs in float16, which overflows there: it takes
            bfloat16 instead.
        revision: branch, tag or commit of a hub repository.
        adapter_path: a folder with adapters that were trained on this checkpoint, as ``python -m mlx_fastvlm.lora``
            writes it.
        lazy: leave the weights on disk until they are first used, which must be in the thread that loaded them.
        force: load even if less memory is free than the model and one image are estimated to need.

    Raises:
        FileNotFoundError: there is no such folder or file.
        OSError: a download failed, or memory is too small.
        ValueError: it is no FastVLM, its files are broken, or the adapters are another model's.
    """
    folder = find_checkpoint(path_or_repo, revision)
    config = FastVlmConfig.from_file(folder / "config.json")
    processor = FastVlmProcessor.from_folder(folder, config)
    model = load_model(FastVlmForConditionalGeneration, folder, config, dtype=dtype)
    if adapter_path is not None:
        load_adapters(model, adapter_path)
    if not lazy:
        if not force:
            memory.check_memory(str(path_or_repo), model, processor.image_settings.size)
        mx.eval(model.parameters())
        prove(model.vision_tower, processor.image_settings.size, model.vision_tower.dtype)
    return model, processor
