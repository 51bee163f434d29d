"""``python -m mlx_fastvlm.benchmark``: time each step of an answer on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_flatten

from .checkpoints.quantization import plan, quantize_modules
from .checkpoints.weights import choose_dtype
from .cli.flags import DEBUG, DTYPE, FORCE, SOURCE
from .cli.parser import Parser, run
from .errors import UsageError
from .evaluation.report import markdown, sections
from .evaluation.speed import head_lines, import_seconds, machine, measure, photo, plot, row_line, timed
from .models.pretrained import load
from .models.released import SHAPES, random_model

if TYPE_CHECKING:
    from .models.fastvlm import FastVlmForConditionalGeneration
    from .processing.processor import FastVlmProcessor


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.benchmark``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.benchmark",
        description="Time each step of an answer on this machine. The table goes to stdout.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("-m", "--model", default="demo", help=SOURCE)
    which.add_argument("--random", choices=SHAPES, help="use random weights in a released model's shapes instead")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help=DTYPE,
    )
    parser.add_argument("--force", action="store_true", help=FORCE)
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to use (a generated 12-megapixel JPEG)")
    parser.add_argument(
        "--image-size",
        type=int,
        action="append",
        metavar="PIXELS",
        help="side to scale the image to, a multiple of 64; repeatable (the checkpoint's)",
    )
    parser.add_argument(
        "--q-bits", type=int, action="append", metavar="N", help="also time the decoder in this many bits; repeatable"
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure each step once, with 8 tokens, for a first impression"
    )
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens to decode")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements per step")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of the table")
    parser.add_argument(
        "--report",
        action="store_true",
        help="print a full report in Markdown: operations, steps, and their shares of the machine's peaks",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="plot the time to first token to this file; needs matplotlib"
    )
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    return parser


def _report(arguments: argparse.Namespace) -> None:
    """Print the report as it grows."""
    print("## FastVLM on this machine, by `python -m mlx_fastvlm.benchmark --report`", flush=True)
    start = time.perf_counter()
    size = (arguments.image_size or [1024])[-1]
    name = arguments.random or "0.5b"
    expect = partial(_announce, f"random {name}, {size} pixels")
    for section in sections(name, size, arguments.repeats, arguments.tokens, expect):
        for line in markdown(section):
            print(line, flush=True)
    print(f"\nmade in {time.perf_counter() - start:.0f} s", flush=True)


def _check_report(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """What a report can't honour is refused."""
    for name in ("model", "dtype", "image", "q_bits", "json", "plot"):
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(
                f"--report can't be combined with --{name.replace('_', '-')}: "
                "it measures --random shapes, 0.5b by default"
            )
    if len(arguments.image_size or ()) > 1:
        parser.error("--report takes one --image-size")


def _benchmark(arguments: argparse.Namespace) -> None:
    if arguments.repeats < 1 or arguments.tokens < 1:
        raise UsageError("--repeats and --tokens must be at least 1.")
    if arguments.quick:
        arguments.repeats, arguments.tokens = 1, min(8, arguments.tokens)
    if arguments.report:
        return _report(arguments)
    if arguments.plot:
        _need_matplotlib()
    image = arguments.image.read_bytes() if arguments.image else photo()
    name = f"random {arguments.random}" if arguments.random else arguments.model
    start_up = import_seconds(min(3, arguments.repeats))
    rows, load_seconds = [], None
    about = {"model": name, **machine()}
    for bits in (None, *(arguments.q_bits or ())):
        seconds, (model, processor) = timed(lambda: _model(arguments))
        load_seconds = load_seconds or seconds
        if bits:
            quantize_modules(model, plan(dict(tree_flatten(model.parameters())), bits=bits).modules)
            mx.eval(model.parameters())
        for size in arguments.image_size or [None]:
            size = processor.check_image_size(size)
            what = f"{name}, {bits or 'full'} bits, {size} pixels"
            mx.reset_peak_memory()
            figures = measure(
                model,
                processor,
                image,
                size,
                tokens=arguments.tokens,
                repeats=arguments.repeats,
                expect=partial(_announce, what),
            )
            rows.append(
                {
                    "weights": f"{bits} bits" if bits else str(model.vision_tower.dtype).removeprefix("mlx.core."),
                    "image_size": size,
                    "figures": figures,
                    "peak_memory_gb": mx.get_peak_memory() / 1e9,
                }
            )
            if not arguments.json:
                if len(rows) == 1:
                    print(", ".join(f"{key} {value}" for key, value in about.items()))
                    print(f"import {start_up.median:.2f} s, load {load_seconds:.2f} s\n")
                    print("\n".join(head_lines()))
                print(row_line(rows[-1]), flush=True)
        del model
        mx.clear_cache()
    if arguments.json:
        steps = {"import": vars(start_up), "load": load_seconds}
        rows = [{**row, "figures": {key: vars(figure) for key, figure in row["figures"].items()}} for row in rows]
        print(json.dumps({**about, "seconds": steps, "rows": rows}))
    if arguments.plot:
        plot(rows, arguments.plot, f"FastVLM, {name}, on {about['device']} ({about['backend']})")


def _announce(what: str, seconds: float) -> None:
    print(f"measuring {what}: about {max(1, round(seconds))} s", file=sys.stderr, flush=True)


def _model(arguments: argparse.Namespace) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    if not arguments.random:
        return load(arguments.model, dtype=arguments.dtype, force=arguments.force)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    model, processor = random_model(
        arguments.random, choose_dtype(arguments.dtype or ("bfloat16" if on_gpu else "float32"))
    )
    mx.eval(model.parameters())
    return model, processor


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415  an extra
    except ImportError:
        raise UsageError('--plot needs matplotlib: pip install "mlx-fastvlm[plot]".') from None


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.benchmark``."""
    command = parser()
    arguments = command.parse_args(argv)
    if arguments.report:
        _check_report(command, arguments)
    return run(lambda: _benchmark(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
