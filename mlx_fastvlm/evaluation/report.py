"""What a machine does with FastVLM, as a Markdown report: single operations, whole steps, and whether they are right.

Made for machines that nobody of the project has: one command, no download, a block to paste into an issue. Rows come as
they are measured, so that an interrupted report is a shorter one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoints.quantization import plan, quantize_modules
from ..generation.api import generate
from ..models import depthwise, gpu, kernels
from ..models.forms import specialize
from ..models.pretrained import load
from ..models.released import random_model
from .speed import TEXT_TOKENS, machine, measure, photo

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration

Row = list[str]

ENOUGH = 0.3  # seconds that an operation is repeated for, after a warm-up
FEWEST, MOST = 5, 50  # repeats


@dataclass
class Section:
    """A table of the report; its rows are measured as they are asked for."""

    title: str
    head: Row
    rows: Iterator[Row]


def sections(
    size: str, image_size: int, repeats: int, tokens: int, expect: Callable[[float], None] = lambda _: None
) -> list[Section]:
    """The report of a released model's shapes, "0.5b" for example, with random weights.

    Args:
        image_size: side of the images in pixels.
        repeats: measurements of each whole step.
        tokens: how many are decoded in each.
        expect: see :func:`measure`.
    """
    peaks = Peaks()
    return [
        Section("Machine", ["", ""], _machine()),
        Section("Peaks of this machine", ["", "type", "median", ""], peaks.rows()),
        Section(
            "Operations of the tower at 1024 pixels", ["operation", "type", "median (ms)", "GFLOP/s"], _operations()
        ),
        Section(
            f"Steps, {size} shapes, {image_size} pixels",
            ["step", "weights", "median (s)", "range", "share of the peak"],
            _steps(size, image_size, repeats, tokens, peaks, expect),
        ),
        Section("This device against the CPU", ["what", "largest difference, in standard deviations"], _parity()),
    ]


def markdown(section: Section) -> Iterator[str]:
    """A section's lines, each as soon as it is known."""
    yield f"\n### {section.title}\n"
    yield _line(section.head)
    yield _line(["---"] * len(section.head))
    for row in section.rows:
        yield _line(row)


def _line(cells: Row) -> str:
    return f"| {' | '.join(cells)} |"


# Measuring


def seconds(function: Callable[[], Any]) -> float:
    """The median of several runs, each computed before the next begins."""
    mx.eval(function())
    took: list[float] = []
    end = time.perf_counter() + ENOUGH
    while len(took) < FEWEST or (time.perf_counter() < end and len(took) < MOST):
        start = time.perf_counter()
        mx.eval(function())
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def _random(*shape: int, dtype: mx.Dtype) -> mx.array:
    x = mx.random.normal(shape, dtype=dtype)
    mx.eval(x)
    return x


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def _types() -> tuple[mx.Dtype, ...]:
    return (mx.bfloat16, mx.float16, mx.float32) if _on_gpu() else (mx.float32,)


# The sections


def _machine() -> Iterator[Row]:
    for name, value in machine().items():
        yield [name, value]
    info = mx.device_info() if _on_gpu() else {}
    for name in ("architecture", "memory_size", "max_recommended_working_set_size", "max_buffer_length"):
        if name in info:
            yield [name.replace("_", " "), str(info[name])]


class Peaks:
    """What the machine reaches at best: in products of matrices, and in reading a matrix that meets one vector.

    Attributes:
        flops: per second, by type.
        bandwidth: bytes per second.
    """

    def __init__(self) -> None:
        self.flops: dict[mx.Dtype, float] = {}
        self.bandwidth = 0.0

    def rows(self) -> Iterator[Row]:
        side = 4096 if _on_gpu() else 1024
        for dtype in _types():
            x = _random(side, side, dtype=dtype)
            took = seconds(partial(_layer(x), x))
            self.flops[dtype] = 2 * side**3 / took
            reached = f"{self.flops[dtype] / 1e12:.3g} TFLOP/s"
            yield [f"product of {side}x{side} matrices", _name(dtype), f"{took * 1e3:.2f} ms", reached]
        x = _random(131072, 896, dtype=_types()[0])  # as a head has it
        took = seconds(partial(_layer(x), _random(1, 896, dtype=x.dtype)))
        self.bandwidth = x.nbytes / took
        yield [
            "a matrix of 131072x896 times a vector",
            _name(x.dtype),
            f"{took * 1e3:.2f} ms",
            f"{self.bandwidth / 1e9:.3g} GB/s",
        ]


def _layer(weight: mx.array) -> nn.Module:
    """A linear layer as models have it on this device: on a CPU all cores compute."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = weight
    return specialize(layer)


def _operations() -> Iterator[Row]:
    """The tower's own shapes (FastViTHD at 1024 pixels: config.json of the released models)."""
    for dtype in _types():
        for name, flops, function in _cases(dtype):
            try:
                took = seconds(function)
            except RuntimeError as error:  # an own kernel that this GPU's compiler refuses
                yield [name, _name(dtype), "failed", str(error).replace("\n", " ").replace("|", "/")[:300]]
                continue
            yield [name, _name(dtype), f"{took * 1e3:.3g}", f"{flops / took / 1e9:.3g}" if flops else ""]


def _cases(dtype: mx.Dtype) -> Iterator[tuple[str, float, Callable[[], mx.array]]]:
    """Name, floating-point operations (0: not what bounds it), and a call."""
    for side, channels, kernel, stride in ((256, 96, 7, 1), (256, 96, 3, 1), (128, 192, 7, 1), (128, 384, 7, 2)):
        x, weight = _random(1, side, side, channels, dtype=dtype), _random(channels, kernel, kernel, 1, dtype=dtype)
        convolve = partial(mx.conv2d, x, weight, stride, kernel // 2, 1, channels)
        flops = 2 * (side // stride) ** 2 * channels * kernel**2
        name = f"depthwise {kernel}x{kernel}, stride {stride}, {side}x{side}x{channels}"
        yield name, flops, convolve
        if kernels.backend() is not None:
            yield f"{name}, own kernel", flops, partial(_own, x, weight, stride)
    for width in (32, 64):
        q = _random(1, 24, 1024, width, dtype=dtype)
        attend = partial(mx.fast.scaled_dot_product_attention, q, q, q, scale=32**-0.5)
        yield f"attention, 24 heads of {width}" + (" (padded)" if width == 64 else ""), 4 * 24 * 1024**2 * width, attend
    x = _random(4096, 3072, dtype=dtype)
    for name, gelu in (("as MLX has it", nn.gelu), ("float32 inside", gpu.gelu)):
        yield f"GELU, {name}, 4096x3072", 0, partial(gelu, x)
    for rows, inputs, outputs in ((4096, 768, 3072), (280, 896, 4864)):
        x, weight = _random(rows, inputs, dtype=dtype), _random(inputs, outputs, dtype=dtype)
        yield f"product {rows}x{inputs}x{outputs}", 2 * rows * inputs * outputs, partial(mx.matmul, x, weight)


def _own(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    return kernels.depthwise(x, weight, stride, "plain")[0]


def _steps(
    size: str, image_size: int, repeats: int, tokens: int, peaks: Peaks, expect: Callable[[float], None]
) -> Iterator[Row]:
    image = photo()
    dtype = mx.bfloat16 if _on_gpu() else mx.float32
    for bits in (None, 8, 4):
        model, processor = random_model(size, dtype)
        mx.eval(model.parameters())
        if bits:
            quantize_modules(model, plan(dict(tree_flatten(model.parameters())), bits=bits).modules)
            mx.eval(model.parameters())
        depthwise.prove(model.vision_tower, image_size, dtype)
        mx.reset_peak_memory()
        figures = measure(model, processor, image, image_size, tokens=tokens, repeats=repeats, expect=expect)
        weights = f"{bits} bits" if bits else _name(dtype)
        shares = _shares(model, image_size, figures, peaks.flops.get(dtype, 0.0), peaks.bandwidth)
        for name in ("preprocessing", "vision", "projector", "prefill", "first_token"):
            if bits and name in ("preprocessing", "vision", "projector"):
                continue  # only the decoder is quantized
            figure = figures[name]
            spread = f"{figure.low:.3g} to {figure.high:.3g}"
            yield [name.replace("_", " "), weights, f"{figure.median:.3g}", spread, shares.get(name, "")]
        decode = figures["decode"]
        spread = f"{decode.low:.4g} to {decode.high:.4g}"
        yield ["decode, tokens/s", weights, f"{decode.median:.4g}", spread, shares["decode"]]
        yield ["peak memory, GB", weights, f"{mx.get_peak_memory() / 1e9:.2f}", "", ""]
        del model
        mx.clear_cache()


def _shares(
    model: FastVlmForConditionalGeneration, image_size: int, figures: dict[str, Any], flops: float, bandwidth: float
) -> dict[str, str]:
    """Of what the machine could do: prefill by its products, decoding by the weights that it reads for each token."""
    decoder = sum(x.nbytes for _, x in tree_flatten(model.language_model.parameters()))
    shares = {"decode": f"{decoder * figures['decode'].median / bandwidth:.0%} of the bandwidth"}
    text = model.config.text_config
    layer = text.hidden_size * text.head_dim * 2 * (text.num_attention_heads + text.num_key_value_heads)
    layer += 3 * text.hidden_size * text.intermediate_size
    prompt = (image_size // 64) ** 2 + TEXT_TOKENS
    if flops:
        done = 2 * layer * text.num_hidden_layers * prompt / figures["prefill"].median
        shares["prefill"] = f"{done / flops:.0%} of the product's"
    return shares


def _parity() -> Iterator[Row]:
    """The demo on this device and on the CPU, in float32 and, on a GPU, in bfloat16 too."""
    if not _on_gpu():
        yield ["nothing to compare: MLX runs on the CPU here", ""]
        return
    rng = np.random.default_rng(0)
    pixels = mx.array(rng.random((1, 256, 256, 3), np.float32))
    question = "Describe the image."
    image = rng.integers(0, 255, (256, 256, 3), np.uint8)
    device = mx.default_device()
    features, answers = {}, {}
    for kind in (mx.cpu, device):
        mx.set_default_device(kind)
        try:
            model, processor = load("demo", dtype="float32")
            specialize(model)
            x = model.get_image_features(pixels)
            mx.eval(x)
            features[kind], answers[kind] = np.array(x), generate(model, processor, question, image, max_tokens=40)
        finally:
            mx.set_default_device(device)
    difference = np.abs(features[device] - features[mx.cpu]).max() / features[mx.cpu].std()
    yield ["image features of the demo, float32", f"{difference:.1e}"]
    same = answers[device] == answers[mx.cpu]
    yield ["its answer, 40 tokens", "the same" if same else f"{answers[device]!r} is not {answers[mx.cpu]!r}"]
