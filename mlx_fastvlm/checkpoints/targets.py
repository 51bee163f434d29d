"""The layouts that checkpoints are written in, beside this package's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .export import check_transformers, to_transformers
from .export_mlx_vlm import check_mlx_vlm, to_mlx_vlm

if TYPE_CHECKING:
    from ..config import FastVlmConfig
    from ..processing.processor import FastVlmProcessor
    from .weights import Weights


@dataclass(frozen=True)
class Target:
    """One of them.

    Attributes:
        check: raises ``ValueError`` for a config, or quantized modules, that the layout can't hold.
        export: weights and config -> the layout's weights and ``config.json``; a processor's files are written.
        made_for: what safetensors files call the program's arrays, "mlx" or "pt".
        library: the hub's name of the library that loads it.
    """

    check: Callable[[FastVlmConfig, dict[str, dict[str, Any]]], None]
    export: Callable[[Weights, FastVlmConfig, FastVlmProcessor | None, Path], tuple[Weights, dict[str, Any]]]
    made_for: str
    library: str


TARGETS = {
    "transformers": Target(check_transformers, to_transformers, "pt", "transformers"),
    "mlx-vlm": Target(check_mlx_vlm, to_mlx_vlm, "mlx", "mlx"),
}
LAYOUTS = ("mlx", *TARGETS)
