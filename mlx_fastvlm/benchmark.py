"""How long each step of an answer takes: ``python -m mlx_fastvlm.benchmark``.

Times are wall-clock seconds, each step on its own and all before it computed; after a warm-up, the median of several
repeats, and in brackets the shortest and the longest. Random models have the released ones' shapes, and so their speed;
their answers are noise.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from .cache import make_cache
from .checkpoints.quantization import plan, quantize_modules
from .checkpoints.weights import choose_dtype
from .cli import Parser, run
from .decoding import prefill, step
from .errors import UsageError
from .models.fastvlm import FastVlmForConditionalGeneration
from .models.pretrained import load
from .models.released import SHAPES, random_model
from .processing.processor import FastVlmProcessor

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
    picture: bytes,
    image_size: int,
    *,
    tokens: int = 32,
    repeats: int = 5,
) -> dict[str, Figure]:
    """Time the steps of an answer about a picture.

    Args:
        picture: an image file's bytes.
        image_size: side of the model's picture in pixels.
        tokens: how many are decoded.

    Returns:
        Seconds for each of ``STEPS``; "first_token", their sum; "decode", tokens a second.
    """
    runs: dict[str, list[float]] = {name: [] for name in (*STEPS, "first_token", "decode")}
    text = mx.arange(TEXT_TOKENS)[None] % 100
    for repeat in range(repeats + 1):
        took = {}
        took["preprocessing"], pixels = timed(lambda: processor.preprocess(picture, image_size))
        took["vision"], features = timed(lambda pixels=pixels: model.vision_tower(pixels).last_hidden_state)
        took["projector"], features = timed(lambda x=features: model.multi_modal_projector(x.flatten(1, 2)))
        layers = make_cache(model)

        def read(features=features, layers=layers) -> mx.array:
            embeddings = mx.concatenate([features, model.get_input_embeddings()(text).astype(features.dtype)], axis=1)
            return mx.argmax(prefill(model, embeddings, layers, 2048), axis=-1)

        took["prefill"], token = timed(read)
        took["first_token"] = sum(took.values())

        def answer(token=token, layers=layers):
            for _ in range(tokens):
                token = mx.argmax(step(model, token, layers), axis=-1)
                mx.async_eval(token)
            return token

        took["decode"] = tokens / timed(answer)[0]
        if repeat:  # the first one warms up
            for name, value in took.items():
                runs[name].append(value)
    return {name: Figure.of(values) for name, values in runs.items()}


def import_seconds(repeats: int) -> Figure:
    """Seconds that a new Python takes to import what generating needs, its own start not counted."""

    def once(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True).returncode)[0]

    return Figure.of([once("import mlx_fastvlm.generate") - once("pass") for _ in range(repeats)])


def machine() -> dict[str, str]:
    """What the figures depend on: processor, system and versions."""
    from . import __version__

    info = mx.device_info() if mx.default_device().type == mx.DeviceType.gpu else {}
    return {
        "device": str(info.get("device_name") or platform.processor() or platform.machine()),
        "backend": mx.default_device().type.name,
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]
        "mlx_fastvlm": __version__,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    names = (*STEPS, "first_token", "decode")
    head = [
        "weights",
        "pixels",
        *(f"{name.replace('_', ' ')} (s)" for name in names[:-1]),
        "decode (tokens/s)",
        "peak (GB)",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        figures = [f"{f.median:.3g} ({f.low:.3g} to {f.high:.3g})" for f in (row["figures"][name] for name in names)]
        lines.append([row["weights"], str(row["image_size"]), *figures, f"{row['peak_memory_gb']:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: list[dict[str, Any]], file: Path, title: str):
    """The time to the first token, step upon step, a bar for each picture size and precision."""
    from matplotlib.figure import Figure as Canvas

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


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.benchmark``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.benchmark",
        description="Time each step of an answer on this machine. The table goes to stdout.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="demo", help="a folder, a hub id, or demo (the default)")
    which.add_argument("--random", choices=SHAPES, help="random weights of a released model's shapes instead")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="instead of the usual one")
    parser.add_argument("--force", action="store_true", help="load it even if memory seems too small")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture instead of a made 12-megapixel JPEG")
    parser.add_argument("--image-size", type=int, action="append", metavar="PIXELS", help="may be repeated")
    parser.add_argument(
        "--q-bits", type=int, action="append", metavar="N", help="also with the decoder quantized; may be repeated"
    )
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens to decode (32)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements of each (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the time to first token (needs matplotlib)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _benchmark(arguments: argparse.Namespace):
    if arguments.repeats < 1 or arguments.tokens < 1:
        raise UsageError("--repeats and --tokens must be at least 1.")
    if arguments.plot:
        _need_matplotlib()
    picture = arguments.image.read_bytes() if arguments.image else photo()
    name = f"random {arguments.random}" if arguments.random else arguments.model
    start_up = import_seconds(min(3, arguments.repeats))
    rows, load_seconds = [], None
    for bits in (None, *(arguments.q_bits or ())):
        seconds, (model, processor) = timed(lambda: _model(arguments))
        load_seconds = load_seconds or seconds
        if bits:
            quantize_modules(model, plan(dict(tree_flatten(model.parameters())), bits=bits).modules)
            mx.eval(model.parameters())
        for size in arguments.image_size or [None]:
            size = processor.check_image_size(size)
            print(f"measuring {name}, {bits or 'full'} bits, {size} pixels ...", file=sys.stderr)
            mx.reset_peak_memory()
            figures = measure(model, processor, picture, size, tokens=arguments.tokens, repeats=arguments.repeats)
            rows.append(
                {
                    "weights": f"{bits} bits" if bits else str(model.vision_tower.dtype).removeprefix("mlx.core."),
                    "image_size": size,
                    "figures": figures,
                    "peak_memory_gb": mx.get_peak_memory() / 1e9,
                }
            )
        del model
        mx.clear_cache()
    about = {"model": name, **machine()}
    if arguments.json:
        steps = {"import": vars(start_up), "load": load_seconds}
        rows = [{**row, "figures": {key: vars(figure) for key, figure in row["figures"].items()}} for row in rows]
        print(json.dumps({**about, "seconds": steps, "rows": rows}))
    else:
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        print(f"import {start_up.median:.2f} s, load {load_seconds:.2f} s\n")
        print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot, f"FastVLM, {name}, on {about['device']} ({about['backend']})")


def _model(arguments: argparse.Namespace) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    if not arguments.random:
        return load(arguments.model, dtype=arguments.dtype, force=arguments.force)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    model, processor = random_model(
        arguments.random, choose_dtype(arguments.dtype or ("bfloat16" if on_gpu else "float32"))
    )
    mx.eval(model.parameters())
    return model, processor


def _need_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError('--plot needs matplotlib: pip install "mlx-fastvlm[plot]".') from None


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.benchmark``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _benchmark(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
