"""What a conversion is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..checkpoints import quantization
from ..checkpoints.targets import LAYOUTS
from ..checkpoints.weights import choose_dtype
from ..errors import UsageError, require

if TYPE_CHECKING:
    from ..processing.images import ImageSource
    from .gptq import Calibration

GOLDEN_URL = "http://images.cocodataset.org/val2017/000000039769.jpg"  # what transformers' published logits are of
Progress = Callable[[str, int, int], None]


def no_progress(step: str, amount: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class ConversionOptions:
    """The options of :func:`mlx_fastvlm.convert`, checked before anything is read or downloaded.

    Attributes:
        quantize: quantize the decoder with ``q_bits`` (2, 3, 4, 5, 6 or 8; by default 4) in groups of ``q_group_size``
            (32, 64 or 128; by default 64), or with ``q_mode`` "mxfp4", "nvfp4" or "mxfp8", which fix both.
        q_gptq: with ``quantize``, what :func:`mlx_fastvlm.tuner.calibration` makes of conversations about images: the
            matrices of the decoder's layers are rounded so that it costs these the least (``gptq.py``).
        q_vision: with ``quantize``, include the tower's linear layers and the projector.
        q_mixed: with ``quantize``, keep 8 bits where few bits hurt most (see ``quantization.plan``).
        dequantize: unpack a quantized source.
        dtype: "float32", "bfloat16" or "float16"; by default the source's. The vision side takes bfloat16 for float16.
        layout: "mlx", which loads with no work; "transformers", which its ``from_pretrained`` loads; "mlx-vlm", which
            that and mlx-swift-lm load.
        revision: branch, tag or commit of a hub id.
        vision_from: another checkpoint to take the vision tower from.
        verify: load the result and compare it with the source; "golden" also compares the released weights with
            published values, on ``golden_image``; False skips both.
        golden_image: the COCO image 000000039769, from wherever.
        upload_repo: a hub repository to upload the result to, private unless ``public``.
        force: replace the target if it has content.
        command: the command line for the model card; by default the call's.
        progress: is told (step, amount, total) after each piece of work: "writing" in bytes, "verifying" in layers.

    Raises:
        UsageError: for a value that an option can't have, and for options that contradict each other.
    """

    quantize: bool = False
    q_bits: int | None = None
    q_group_size: int | None = None
    q_mode: str = "affine"
    q_vision: bool = False
    q_mixed: bool = False
    q_gptq: Calibration | None = None
    dequantize: bool = False
    dtype: str | None = None
    layout: str = "mlx"
    revision: str | None = None
    vision_from: str | Path | None = None
    verify: bool | str = True
    golden_image: ImageSource = GOLDEN_URL
    upload_repo: str | None = None
    public: bool = False
    force: bool = False
    command: str | None = None
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        for name in ("quantize", "q_vision", "q_mixed", "dequantize", "public", "force"):
            require(isinstance(getattr(self, name), bool), f"{name} must be True or False", getattr(self, name))
        require(self.layout in LAYOUTS, f"layout must be one of {', '.join(LAYOUTS)}", self.layout)
        require(self.verify in (True, False, "golden"), "verify must be True, False or 'golden'", self.verify)
        require(callable(self.progress), "progress must be a function of (step, amount, total)", self.progress)
        if self.dtype is not None:
            choose_dtype(self.dtype)
        require(
            self.q_gptq is None or callable(self.q_gptq), "q_gptq must be what tuner.calibration returns", self.q_gptq
        )
        self._check_quantization()
        if self.public and not self.upload_repo:
            raise UsageError("public is about an upload; name a repository with upload_repo.")

    def _check_quantization(self) -> None:
        if self.quantize and self.dequantize:
            raise UsageError("quantize and dequantize exclude each other; leave one out.")
        if self.quantize and self.layout == "transformers":
            raise UsageError(
                "transformers can't load MLX's quantized weights; leave out quantize, or write layout mlx."
            )
        if self.q_vision and self.layout == "mlx-vlm":
            raise UsageError(
                "mlx-vlm's layout keeps tower and projector in full precision; leave out q_vision, or write layout mlx."
            )
        if self.quantize:
            quantization.check_scheme(self.q_bits, self.q_group_size, self.q_mode, self.q_mixed)
            if self.q_gptq is not None and self.q_mode != "affine":
                raise UsageError(f"q_gptq needs q_mode affine, got {self.q_mode}.")
            return
        default = ConversionOptions.__dataclass_fields__
        for name in ("q_bits", "q_group_size", "q_mode", "q_vision", "q_mixed", "q_gptq"):
            if getattr(self, name) != default[name].default:
                raise UsageError(f"{name} says how to quantize; add quantize, or leave it out.")


class ConversionKeywords(TypedDict, total=False):
    """The same as keywords, for type checkers; a test holds the two together."""

    quantize: bool
    q_bits: int | None
    q_group_size: int | None
    q_mode: str
    q_vision: bool
    q_mixed: bool
    q_gptq: Calibration | None
    dequantize: bool
    dtype: str | None
    layout: str
    revision: str | None
    vision_from: str | Path | None
    verify: bool | str
    golden_image: ImageSource
    upload_repo: str | None
    public: bool
    force: bool
    command: str | None
    progress: Progress
