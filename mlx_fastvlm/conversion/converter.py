"""The converter: any layout in; MLX safetensors (or transformers' layout) out, quantized or not, and checked."""

from __future__ import annotations

import functools
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..checkpoints import quantization
from ..checkpoints.targets import TARGETS
from ..checkpoints.weights import Weights, read_weights
from ..config import FastVlmConfig
from ..files import atomic_folder, check_target, write_json, write_tensors
from ..hub import upload
from ..keywords import lists_fields
from ..models.pretrained import load
from ..models.threads import end_streams_with_thread
from ..processing.processor import FastVlmProcessor
from ..processing.saving import preprocessor_config
from .card import Origin, model_card
from .options import ConversionOptions
from .report import Report, readable_size
from .source import LICENSE_PATTERNS, TOKENIZER_FILES, Source
from .verification import LIMIT, Agreement, compare, golden, predictions

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

    from .options import ConversionKeywords


@lists_fields(ConversionOptions)
def convert(hf_path: str | Path, mlx_path: str | Path, **options: Unpack[ConversionKeywords]) -> Report:
    """Convert a checkpoint of any layout.

    Args:
        hf_path: a folder, a hub id or "demo".
        mlx_path: the folder to write.
        options: those of :class:`~mlx_fastvlm.conversion.options.ConversionOptions`.

    Raises:
        UsageError: for a value that an option can't have.
        ValueError, OSError: one sentence; then nothing has been written.
    """
    start = time.perf_counter()
    chosen = ConversionOptions(**options)
    target = Path(mlx_path)
    check_target(target, force=chosen.force)
    end_streams_with_thread()
    source = Source.find(hf_path, chosen)
    source.check_apart(target)
    weights, kept = source.convert()
    _check_exportable(source, weights)
    size_before = source.size
    mx.reset_peak_memory()
    with atomic_folder(target, force=chosen.force) as folder:
        size, parameters = _write(source, weights, folder)
        peak = mx.get_peak_memory()
        licenses = source.copy_side_files(folder, *LICENSE_PATTERNS)
        agreement = _verify(source, folder) if chosen.verify else None
        proof = golden(*load(folder, dtype="bfloat16"), chosen.golden_image) if chosen.verify == "golden" else None
        bits, seconds = 8 * size / parameters, time.perf_counter() - start
        report = Report(size_before, size, bits, seconds, peak, kept, agreement, proof)
        command = chosen.command or f"mlx_fastvlm.convert({str(hf_path)!r}, {str(mlx_path)!r}, ...)"
        origin = Origin.read(hf_path, source.folder, licenses)
        card = model_card(origin, command, report, chosen.layout, bool(weights.modules))
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    if chosen.upload_repo:
        upload(target, chosen.upload_repo, chosen.public)
    return report


def _check_exportable(source: Source, weights: Weights) -> None:
    """``ValueError`` for what the layout can't hold."""
    if target := TARGETS.get(source.options.layout):
        target.check(source.config, weights.modules)


def _write(source: Source, weights: Weights, folder: Path) -> tuple[int, int]:
    """Write the checkpoint, and use the weights up: bytes, and how many parameters those are."""
    config, target = _described(source, weights), TARGETS.get(source.options.layout)
    if target:
        weights, described = target.export(weights, config, source.processor, folder)
    else:
        described = config.to_dict()
        source.copy_side_files(folder, *TOKENIZER_FILES)
        write_json(folder / "preprocessor_config.json", preprocessor_config(source.processor))
    parameters = _parameters(weights)
    size = sum(tensor.nbytes for tensor in weights.tensors.values())
    _check_disk(folder, size)
    write_tensors(
        folder,
        weights.tensors,
        made_for=target.made_for if target else "mlx",
        progress=lambda amount: source.options.progress("writing", amount, size),
    )
    write_json(folder / "config.json", described)
    return size, parameters


def _described(source: Source, weights: Weights) -> FastVlmConfig:
    """The config of the result: what is tied, quantized and stored, and how images are made square."""
    processor = source.processor
    return replace(
        source.config,
        vision_config=replace(source.config.vision_config, image_size=processor.image_settings.size),
        tie_word_embeddings=weights.tied,
        quantization=quantization.config_entry(weights.modules),
        eos_token_id=sorted(processor.eos_token_ids),
        dtype=str(weights.stored_dtype).removeprefix("mlx.core."),
    )


def _parameters(weights: Weights) -> int:
    """How many weights there are, packed ones counted one by one."""
    total = 0
    for name, tensor in weights.tensors.items():
        module, _, part = name.rpartition(".")
        if module not in weights.modules:
            total += tensor.size
        elif part == "weight":
            total += tensor.size * 32 // weights.modules[module]["bits"]
        elif part == "bias":
            total += tensor.size
    return total


def _verify(source: Source, folder: Path) -> Agreement:
    """Load what was written; it must compute what was meant to be written. Then compare it with the source."""
    total = 3 * source.config.text_config.num_hidden_layers
    predict = functools.partial(
        predictions, progress=lambda amount: source.options.progress("verifying", amount, total)
    )
    config = FastVlmConfig.from_file(folder / "config.json")
    written = predict(read_weights(folder, config), config, FastVlmProcessor.from_folder(folder, config))
    meant = predict(source.convert()[0], source.config, source.processor)
    exact = compare(meant, written)
    if not exact.max_difference <= LIMIT:
        raise ValueError(f"The written checkpoint does not compute what its source does: {exact}. Nothing is kept.")
    return compare(predict(source.read(), source.config, source.processor), written)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"The result takes {readable_size(needed)}, but only {readable_size(free)} are free; make room first."
        )
