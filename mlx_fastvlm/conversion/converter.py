"""The converter: any layout in; MLX safetensors (or transformers' layout) out, quantized or not, and checked."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from ..checkpoints import quantization
from ..checkpoints.export import preprocessor_config, to_transformers
from ..checkpoints.weights import Weights, cast, choose_dtype, read_weights
from ..config import FastVlmConfig
from ..errors import UsageError
from ..files import atomic_folder, check_empty, write_json, write_tensors
from ..hub import find_checkpoint, upload
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.loading import fitting_model
from ..models.pretrained import load
from ..processing.images import ImageSource
from ..processing.processor import FastVlmProcessor
from .card import model_card
from .report import Report, readable_size
from .verification import GOLDEN_URL, LIMIT, Agreement, compare, golden, predictions

# What a converted folder takes over from its source as it is.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
LICENSE_PATTERNS = ("LICENSE*", "ACKNOWLEDGEMENTS*", "ACKNOWLEDGMENTS*", "NOTICE*")


def convert(
    hf_path: str | Path,
    mlx_path: str | Path,
    *,
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    q_mode: str = "affine",
    q_vision: bool = False,
    q_mixed: bool = False,
    dequantize: bool = False,
    dtype: str | None = None,
    layout: str = "mlx",
    revision: str | None = None,
    vision_from: str | Path | None = None,
    verify: bool | str = True,
    golden_image: ImageSource = GOLDEN_URL,
    upload_repo: str | None = None,
    public: bool = False,
    force: bool = False,
    command: str | None = None,
) -> Report:
    """Convert a checkpoint of any layout.

    Args:
        hf_path: a folder, a hub id or "demo".
        mlx_path: the folder to write.
        quantize: quantize the decoder with ``q_bits`` (2, 3, 4, 5, 6 or 8) in groups of ``q_group_size`` (32, 64 or
            128), or with ``q_mode`` "mxfp4"; ``q_vision`` includes the tower's linear layers and the projector;
            ``q_mixed`` keeps 8 bits where few bits hurt most (see ``quantization.plan``).
        dequantize: unpack a quantized source.
        dtype: "float32", "bfloat16" or "float16"; by default the source's. The vision side takes bfloat16 for float16.
        layout: "mlx", which loads with no work, or "transformers", which its ``from_pretrained`` loads.
        vision_from: another checkpoint to take the vision tower from.
        verify: load the result and compare it with the source; "golden" also compares the released weights with
            published values, on ``golden_image``; False skips both.
        upload_repo: a hub repository to upload the result to, private unless ``public``.
        force: replace ``mlx_path`` if it has content.
        command: the command line for the model card; by default this call's.

    Raises:
        ValueError, OSError: one sentence; then nothing has been written.
    """
    start = time.perf_counter()
    target = Path(mlx_path)
    _check_options(quantize, dequantize, layout, dtype, verify, public, upload_repo)
    if not force:
        check_empty(target)
    source = find_checkpoint(hf_path, revision, LICENSE_PATTERNS)
    donor = None if vision_from is None else find_checkpoint(vision_from)
    for folder in (source, donor):
        if folder is not None and target.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{target} is or holds the source, which would be overwritten; choose another folder.")
    config = FastVlmConfig.from_file(source / "config.json")
    processor = FastVlmProcessor.from_folder(source, config)

    def prepare() -> tuple[Weights, list[str]]:
        """The weights as they will be stored, lazily; a fresh copy each time, since writing uses them up."""
        weights = read_weights(source, config, donor)
        fitting_model(FastVlmForConditionalGeneration, weights, config)
        chosen = choose_dtype(dtype) if dtype else weights.stored_dtype
        if quantize or dequantize:
            weights = replace(weights, tensors=quantization.dequantized(weights.tensors, weights.modules), modules={})
        weights = replace(weights, tensors=cast(weights.tensors, chosen))
        if not quantize:
            return weights, []
        chosen_modules = quantization.plan(
            weights.tensors, bits=q_bits, group_size=q_group_size, mode=q_mode, vision=q_vision, mixed=q_mixed
        )
        packed = quantization.quantized(weights.tensors, chosen_modules.modules)
        return replace(weights, tensors=packed, modules=chosen_modules.modules), chosen_modules.kept

    weights, kept = prepare()
    if layout == "transformers" and weights.modules:
        raise ValueError(f"{hf_path} is quantized, which transformers' layout is not; add --dequantize.")
    size_before = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    mx.reset_peak_memory()
    with atomic_folder(target, force=force) as folder:
        written = _described(config, processor, weights)
        if layout == "transformers":
            weights, written = to_transformers(weights, written, processor, folder)
        else:
            _copy_files(source, folder, TOKENIZER_FILES)
            write_json(folder / "preprocessor_config.json", preprocessor_config(processor))
        count = _parameters(weights)
        size = sum(tensor.nbytes for tensor in weights.tensors.values())
        _check_disk(folder, size)
        with _Progress(size, "writing", "B") as progress:
            write_tensors(
                folder, weights.tensors, made_for="mlx" if layout == "mlx" else "pt", progress=progress.advance
            )
        peak = mx.get_peak_memory()
        written.save_pretrained(folder)
        licenses = _copy_files(source, folder, LICENSE_PATTERNS)
        agreement = _verify(folder, prepare, source, config, processor, donor) if verify else None
        proof = None
        if verify == "golden":
            proof = golden(*load(folder, dtype="bfloat16"), golden_image)
        report = Report(size_before, size, 8 * size / count, time.perf_counter() - start, peak, kept, agreement, proof)
        command = command or f"mlx_fastvlm.convert({str(hf_path)!r}, {str(mlx_path)!r}, ...)"
        (folder / "README.md").write_text(model_card(hf_path, command, report, licenses), encoding="utf-8")
    if upload_repo:
        upload(target, upload_repo, public)
    return report


def _check_options(quantize, dequantize, layout, dtype, verify, public, upload_repo):
    """Contradictions and unknown words, before anything is read or downloaded."""
    if quantize and dequantize:
        raise UsageError("quantize and dequantize exclude each other; leave one out.")
    if layout not in ("mlx", "transformers"):
        raise UsageError(f"layout must be 'mlx' or 'transformers', got {layout!r}.")
    if layout == "transformers" and quantize:
        raise UsageError("transformers can't load MLX's quantized weights; leave out quantize, or write layout mlx.")
    if dtype is not None:
        choose_dtype(dtype)
    if verify not in (True, False, "golden"):
        raise UsageError(f"verify must be True, False or 'golden', got {verify!r}.")
    if public and not upload_repo:
        raise UsageError("public is about an upload; name a repository with upload_repo.")


def _described(config: FastVlmConfig, processor: FastVlmProcessor, weights: Weights) -> FastVlmConfig:
    """The config of the result: what is tied, quantized and stored, and how pictures are squared."""
    return replace(
        config,
        vision_config=replace(config.vision_config, image_size=processor.image_settings.size),
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


def _verify(folder: Path, prepare, source: Path, config: FastVlmConfig, processor, donor) -> Agreement:
    """Load what was written; it must compute what was meant to be written. Then compare it with the source."""
    written_config = FastVlmConfig.from_file(folder / "config.json")
    written_processor = FastVlmProcessor.from_folder(folder, written_config)
    with _Progress(3 * config.text_config.num_hidden_layers, "verifying", "layers") as progress:
        weights = read_weights(folder, written_config)
        written = predictions(weights, written_config, written_processor, progress.advance)
        meant = predictions(prepare()[0], config, processor, progress.advance)
        exact = compare(meant, written)
        if not exact.max_difference <= LIMIT:
            raise ValueError(f"The written checkpoint does not compute what its source does: {exact}. Nothing is kept.")
        return compare(predictions(read_weights(source, config, donor), config, processor, progress.advance), written)


def _copy_files(source: Path, folder: Path, patterns: tuple[str, ...]) -> list[str]:
    files = sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _check_disk(folder: Path, needed: int):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"The result takes {readable_size(needed)}, but only {readable_size(free)} are free; make room first."
        )


class _Progress:
    """A progress bar on stderr, if that is a terminal."""

    def __init__(self, total: int, label: str, unit: str):
        from huggingface_hub.utils import tqdm

        self._bar = tqdm(total=total, desc=label, unit=unit, unit_scale=True, disable=not sys.stderr.isatty())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def advance(self, amount: int):
        self._bar.update(amount)
