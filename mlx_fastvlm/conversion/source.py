"""The checkpoint that is converted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..checkpoints import quantization
from ..checkpoints.weights import Weights, cast, choose_dtype, read_weights, weight_files
from ..config import FastVlmConfig
from ..hub import find_checkpoint, is_within
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.loading import build_model, fitting_model
from ..processing.processor import FastVlmProcessor
from . import gptq

if TYPE_CHECKING:
    from .options import ConversionOptions

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


@dataclass(frozen=True)
class Source:
    """A checkpoint of any layout, and what it is to become. Its weights are read anew each time they are asked for,
    lazily, since writing and verifying use them up.

    Attributes:
        folder: where it is.
        donor: the checkpoint whose tower is taken instead of its own, if any.
    """

    folder: Path
    donor: Path | None
    config: FastVlmConfig
    processor: FastVlmProcessor
    options: ConversionOptions
    _calibrated: dict[str, gptq.Packed] = field(default_factory=dict)  # made once: it runs the model

    @classmethod
    def find(cls, path_or_repo: str | Path, options: ConversionOptions) -> Source:
        """Find or download a checkpoint, and read all of it but the weights."""
        folder = find_checkpoint(path_or_repo, options.revision, LICENSE_PATTERNS)
        donor = None if options.vision_from is None else find_checkpoint(options.vision_from)
        config = FastVlmConfig.from_file(folder / "config.json")
        source = cls(folder, donor, config, FastVlmProcessor.from_folder(folder, config), options)
        source.side_files(*TOKENIZER_FILES, *LICENSE_PATTERNS)
        return source

    @property
    def size(self) -> int:
        """Bytes of its safetensors files."""
        return sum(file.stat().st_size for file in weight_files(self.folder))

    def check_apart(self, target: Path) -> None:
        """``ValueError`` where writing to ``target`` would destroy what is read."""
        for folder in (self.folder, self.donor):
            if folder is not None and target.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise ValueError(f"{target} is or holds the source, which would be overwritten; choose another folder.")

    def read(self) -> Weights:
        """The weights as the checkpoint has them, under this package's names."""
        return read_weights(self.folder, self.config, self.donor)

    def convert(self) -> tuple[Weights, list[str]]:
        """The weights as they are to be written, and the modules that stayed in full precision.

        Raises:
            ValueError: where they do not fit the config.
        """
        weights, options = self.read(), self.options
        fitting_model(FastVlmForConditionalGeneration, weights, self.config)
        dtype = choose_dtype(options.dtype) if options.dtype else weights.stored_dtype
        if options.quantize or options.dequantize:
            weights = _plain(weights)
        weights = replace(weights, tensors=cast(weights.tensors, dtype))
        if not options.quantize:
            return weights, []
        plan = quantization.plan(
            weights.tensors,
            bits=options.q_bits,
            group_size=options.q_group_size,
            mode=options.q_mode,
            vision=options.q_vision,
            mixed=options.q_mixed,
        )
        if options.q_gptq is not None and not self._calibrated:
            types = {name: weights.tensors[f"{name}.weight"].dtype for name in plan.modules}
            model = build_model(FastVlmForConditionalGeneration, _plain(self.read()), self.config, mx.float32)
            how = plan.modules, types, options.q_gptq, options.progress
            self._calibrated.update(gptq.calibrated(model, self.processor, *how))
        packed = quantization.quantized(weights.tensors, plan.modules, self._calibrated)
        return replace(weights, tensors=packed, modules=plan.modules), plan.kept

    def side_files(self, *patterns: str) -> list[Path]:
        """Its files of these names.

        Raises:
            ValueError: for a link out of the checkpoint: a stranger's might lead to what is nobody's business, and
                the result may be published.
        """
        files = sorted({file for pattern in patterns for file in self.folder.glob(pattern) if file.is_file()})
        for file in files:
            if not is_within(file, self.folder):
                raise ValueError(f"{file} is a link to {file.resolve()}, outside its folder; put a copy there instead.")
        return files

    def copy_side_files(self, folder: Path, *patterns: str) -> list[str]:
        """Copy its files of these names; which they are."""
        files = self.side_files(*patterns)
        for file in files:
            shutil.copyfile(file, folder / file.name)
        return [file.name for file in files]


def _plain(weights: Weights) -> Weights:
    """The same, unpacked where they are quantized."""
    return replace(weights, tensors=quantization.dequantized(weights.tensors, weights.modules), modules={})
