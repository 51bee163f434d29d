"""How long each step of an answer takes.

Times are wall-clock seconds, each step on its own and all before it computed; after a warm-up, the median of several
repeats, and in brackets the shortest and the longest.
"""

from __future__ import annotations

import io
import itertools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from PIL import Image

from .. import __version__
from ..cache.policy import make_cache
from ..generation.decoding import prefill, step
from ..startup import openblas

if TYPE_CHECKING:
    from ..cache.kv import KVCache
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor

# Apple's prompt around "What are these?" is 24 tokens long.
TEXT_TOKENS = 24
# What passes before the first token, in this order.
STEPS = ("preprocessing", "vision", "projector", "prefill")


def photo(width: int = 4032, height: int = 3024) -> bytes:
    """A JPEG of a phone's size, 12 megapixels: smooth shades and some noise, so that it is neither empty nor random."""
    noise = np.random.default_rng(0).integers(0, 32, (height // 3, width // 3, 3), np.uint8)
    noise = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))
    x, y = np.linspace(0, 200, width), np.linspace(0, 200, height)
    shades = np.stack(np.broadcast_arrays(x[None], y[:, None], (x[None] + y[:, None]) / 2), axis=-1)
    file = io.BytesIO()
    Image.fromarray((shades + noise).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclass
class Figure:
    """Repeated measurements of one thing.

    Attributes:
        median, low, high: seconds, or tokens a second.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        return cls(statistics.median(values), min(values), max(values))


def timed(function: Callable[..., Any]) -> tuple[float, Any]:
    """Seconds, and what the function returned, computed."""
    start = time.perf_counter()
    result = function()
    mx.eval(result)
    return time.perf_counter() - start, result


def measure(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    image: bytes,
    image_size: int,
    *,
    tokens: int = 32,
    repeats: int = 5,
    expect: Callable[[float], None] = lambda _: None,
) -> dict[str, Figure]:
    """Time the steps of an answer about an image.

    Args:
        image: an image file's bytes.
        image_size: side of the model's image in pixels.
        tokens: how many are decoded.
        expect: is told, after the first answer, how many seconds the others will take about.

    Returns:
        Seconds for each of ``STEPS``; "first_token", their sum; "decode", tokens a second.
    """
    runs: dict[str, list[float]] = {name: [] for name in (*STEPS, "first_token", "decode")}
    text = mx.arange(TEXT_TOKENS)[None] % 100
    for repeat in range(repeats + 1):
        took, start = {}, time.perf_counter()
        took["preprocessing"], pixels = timed(lambda: processor.preprocess(image, image_size))
        took["vision"], features = timed(lambda pixels=pixels: model.vision_tower(pixels).last_hidden_state)
        took["projector"], features = timed(lambda x=features: model.multi_modal_projector(x.flatten(1, 2)))
        caches = make_cache(model)

        def read(features: mx.array = features, caches: list[KVCache] = caches) -> mx.array:
            words = model.get_input_embeddings()(text)
            embeddings = mx.concatenate([features.astype(words.dtype), words], axis=1)
            return mx.argmax(prefill(model, embeddings, caches, 2048), axis=-1)

        took["prefill"], token = timed(read)
        took["first_token"] = sum(took.values())

        def answer(token: mx.array = token, caches: list[KVCache] = caches) -> mx.array:
            for _ in range(tokens):
                token = mx.argmax(step(model, token, caches), axis=-1)
                mx.async_eval(token)
            return token

        took["decode"] = tokens / timed(answer)[0]
        if not repeat:  # it warms up
            expect(repeats * (time.perf_counter() - start))
            continue
        for name, value in took.items():
            runs[name].append(value)
    return {name: Figure.of(values) for name, values in runs.items()}


def import_seconds(repeats: int) -> Figure:
    """Seconds that a new Python takes to import what generating needs, its own start not counted."""

    def once(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True).returncode)[0]

    return Figure.of([once("import mlx_fastvlm.generate") - once("pass") for _ in range(repeats)])


def machine() -> dict[str, str]:
    """What the figures depend on: processor, system, versions, and on a Linux CPU the BLAS."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    info = mx.device_info() if on_gpu else {}
    blas = {} if on_gpu or sys.platform != "linux" else {"blas": openblas() or "of MLX's wheel"}
    return {
        "device": str(info.get("device_name") or _processor()),
        "backend": mx.default_device().type.name,
        **blas,
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # its stub lacks it
        "mlx_fastvlm": __version__,
    }


def _processor() -> str:
    """The CPU's name; on Linux with its family and model, which tell apart what a cloud gives one name."""
    try:
        with open("/proc/cpuinfo") as file:
            first = list(itertools.takewhile(str.strip, file))
    except OSError:
        first = []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    numbers = f" (family {told['cpu family']}, model {told['model']})" if {"cpu family", "model"} <= told.keys() else ""
    return told["model name"] + numbers


_SHOWN = (*STEPS, "first_token", "decode")


def head_lines() -> list[str]:
    """The head of a Markdown table of figures."""
    head = [
        "weights",
        "pixels",
        *(f"{name.replace('_', ' ')} (s)" for name in _SHOWN[:-1]),
        "decode (tokens/s)",
        "peak (GB)",
    ]
    return [_line(head), _line(["---"] * len(head))]


def row_line(row: dict[str, Any]) -> str:
    """A row of that table."""
    figures = [f"{f.median:.3g} ({f.low:.3g} to {f.high:.3g})" for f in (row["figures"][name] for name in _SHOWN)]
    return _line([row["weights"], str(row["image_size"]), *figures, f"{row['peak_memory_gb']:.2f}"])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """The time to the first token, step upon step, a bar for each image size and precision."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  an extra

    canvas = Canvas(figsize=(1.5 + 1.1 * len(rows), 4.5), layout="constrained")
    axes = canvas.add_subplot()
    labels = [f"{row['image_size']} px\n{row['weights']}" for row in rows]
    bottom = np.zeros(len(rows))
    for name in STEPS:
        heights = np.array([row["figures"][name].median for row in rows])
        axes.bar(labels, heights, bottom=bottom, label=name)
        bottom += heights
    for place, seconds in enumerate(bottom):
        axes.text(place, seconds, f"{seconds:.2f}", ha="center", va="bottom")
    axes.set_ylabel("time to first token (s)")
    axes.set_title(title, fontsize=10)
    axes.legend()
    canvas.savefig(file, dpi=150)
