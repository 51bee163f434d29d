"""The roofline of FastVLM: from the graph of each step, how long a machine needs at least, and what bounds it.

    python benchmarks/roofline.py                  # every Mac's chip, the 0.5B shapes, 1024 pixels
    python benchmarks/roofline.py --here           # this machine beside it: predicted from its peaks, and measured
    python benchmarks/roofline.py --kernels tower  # which operations the time goes into, on one chip

Each operation of a graph (tower, prefill, one decoded token) moves its inputs and outputs through memory and does its
arithmetic; the longer of the two is its time, at the stated shares of the chip's peaks, and a launch at least. For Macs
it is what Metal starts (tests/support/metal.py); for this machine, views are free, and loops over elements of which one
feeds the next are one kernel.
Nothing is computed but for ``--here``. The peaks of Macs are commonly quoted figures, and nobody has measured this
package there: these are predictions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import mlx_fastvlm  # noqa: F401, isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mlx_fastvlm import FastVlmForConditionalGeneration, make_cache
from mlx_fastvlm.checkpoints.quantization import plan, quantize_modules
from mlx_fastvlm.evaluation.report import Peaks
from mlx_fastvlm.evaluation.speed import TEXT_TOKENS, measure, photo
from mlx_fastvlm.generation.decoding import prefill, step
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.released import random_config, random_model
from tests.support.metal import graph_of

# Commonly quoted peaks: float32 TFLOP/s of the GPU, and GB/s of memory.
CHIPS = {
    "M1": (2.6, 68),
    "M1 Pro": (5.3, 200),
    "M1 Max": (10.6, 400),
    "M2": (3.6, 100),
    "M2 Pro": (6.8, 200),
    "M2 Max": (13.6, 400),
    "M3": (4.1, 100),
    "M3 Pro": (7.4, 150),
    "M3 Max": (16.3, 400),
    "M4": (4.6, 120),
    "M4 Pro": (9.2, 273),
    "M4 Max": (18.4, 546),
    "M3 Ultra": (28.2, 819),
}
# Shares of the peaks that are assumed: matrix products and attention, depthwise convolutions (their kernel has no
# register blocking), everything else by memory.
PRODUCTS, DEPTHWISE, MEMORY = 0.7, 0.05, 0.8
LAUNCH = 2e-6  # seconds a kernel, at least

# No work of their own: other ways to look at the same memory, and arrays made of one number.
VIEWS = {"Broadcast", "Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split"}
VIEWS |= {"AsStrided", "Full", "StopGradient", "Depends", "Copy"}
# What can't share a kernel with its neighbours.
ALONE = {"Gather", "Concatenate", "Pad", "SliceUpdate", "DynamicSliceUpdate", "ScatterAxis", "GatherAxis", "Softmax"}


@dataclass
class Operation:
    """A kernel: what it is, and what it costs."""

    name: str
    flops: float
    bytes: float
    kind: str  # "product", "depthwise", "alone" or "loop", which goes over elements

    def seconds(self, flops: float, bandwidth: float) -> float:
        share = {"product": PRODUCTS, "depthwise": DEPTHWISE}.get(self.kind, 1.0)
        return max(self.flops / (flops * share), self.bytes / (bandwidth * MEMORY), LAUNCH)


class Graph:
    """The operations that a function of arrays comes to, as if it were called with these.

    Loops over elements of which one feeds only the next count as one kernel, as ``mx.compile`` makes them; a graph that
    is exported has its compiled parts and norms in pieces.
    """

    def __init__(self, function, *arguments):
        self._bytes: dict[str, int] = {}  # of each array
        self._source: dict[str, str] = {}  # of a view, the array that it looks at
        self._readers: Counter[str] = Counter()
        self._kernels: list[tuple[Operation, set[str], set[str]]] = []  # with the arrays it reads and writes
        mx.export_function(self._note, function, *arguments)
        self.operations = self._fused()

    def _note(self, event):
        if event["type"] != "primitive":
            return
        sides = event["inputs"], event["outputs"]
        for name, shape, dtype in (*sides[0], *sides[1]):
            self._bytes[name] = math.prod(shape) * dtype.size
        read, written = ([self._source.get(name, name) for name, _, _ in side] for side in sides)
        if event["name"] in VIEWS:
            self._source |= {name: read[0] if read else name for name in written}
            return
        self._readers.update(set(read))
        self._kernels.append((_operation(event), set(read), set(written)))

    def _fused(self) -> list[Operation]:
        made: dict[str, int] = {}  # by which kernel each array is written
        kernels: list[tuple[Operation, set[str], set[str]] | None] = []
        for operation, read, written in self._kernels:
            if operation.kind == "loop":
                for place in {made[name] for name in read if name in made and self._readers[name] == 1}:
                    before = kernels[place]
                    if before is not None and before[0].kind == "loop":
                        operation = Operation(operation.name, operation.flops + before[0].flops, 0, "loop")
                        read, kernels[place] = (read - before[2]) | before[1], None
            made |= dict.fromkeys(written, len(kernels))
            kernels.append((operation, read, written))
        for one in kernels:
            if one is not None and one[0].kind == "loop":
                one[0].bytes = sum(self._bytes[name] for name in one[1] | one[2])
        return [one[0] for one in kernels if one is not None]


def operations(function, *arguments) -> list[Operation]:
    return Graph(function, *arguments).operations


def _operation(event) -> Operation:
    inputs, outputs = ([(shape, dtype.size) for _, shape, dtype in event[side]] for side in ("inputs", "outputs"))
    moved = sum(math.prod(shape) * size for shape, size in inputs + outputs)
    name, out = event["name"], math.prod(outputs[0][0])
    shapes = [shape for shape, _ in inputs]
    if name in ("Matmul", "AddMM"):
        return Operation(f"{name} {shapes[0]} {shapes[1]}", 2 * out * shapes[0][-1], moved, "product")
    if name == "QuantizedMatmul":
        return Operation(f"{name} {shapes[0]} {outputs[0][0]}", 2 * out * shapes[0][-1], moved, "product")
    if name == "Convolution":
        kind = "depthwise" if shapes[1][-1] == 1 and shapes[0][-1] > 1 else "product"
        flops = 2 * out * math.prod(shapes[1][1:])
        return Operation(f"{kind} convolution {shapes[0]} {shapes[1][1:3]}", flops, moved, kind)
    if name == "ScaledDotProductAttention":
        return Operation(f"attention {shapes[0]} {shapes[1]}", 4 * out * shapes[1][-2], moved, "product")
    if name == "Gather":  # reads the rows that it gives, and no others
        return Operation(f"{name} {outputs[0][0]}", 0, 2 * out * outputs[0][1], "alone")
    return Operation(f"{name} {outputs[0][0]}", out, moved, "alone" if name in ALONE else "loop")


def kernels(model, function, *arguments) -> list[Operation]:
    """What Metal starts for it: attention, norms and compiled functions as one kernel each, copies included."""
    return [_kernel(one) for one in graph_of(model, function, *arguments).kernels]


def _kernel(kernel) -> Operation:
    arrays = [*kernel.inputs, *kernel.outputs]
    # What is broadcast is read from memory once.
    sizes = [math.prod(n for n, step in zip(x.shape, x.strides) if step) * x.dtype.size for x in arrays]
    name, shapes, out = kernel.name, [x.shape for x in kernel.inputs], kernel.outputs[0]
    if "Softmax" in name and "Matmul" in name:
        keys = max(shape[-2] for shape in shapes)
        return Operation(f"attention {out.shape}", 4 * out.size * keys, sum(sizes), "product")
    if name in ("Matmul", "AddMM", "QuantizedMatmul", "Convolution", "Gather"):
        sides = ("inputs", kernel.inputs), ("outputs", kernel.outputs)
        event = {side: [("", x.shape, x.dtype) for x in found] for side, found in sides}
        operation = _operation({"name": name, **event})
        operation.bytes = operation.bytes if name == "Gather" else sum(sizes)
        return operation
    return Operation(f"{name[:60]} {out.shape}", out.size, sum(sizes), "loop")


def graphs(size: str, pixels: int) -> dict[str, list[Operation]]:
    """Operations of each step in the forms for a GPU, bfloat16, and decoding in 4 bits as well; weights are zeros."""
    model = FastVlmForConditionalGeneration(random_config(size))
    model.update(tree_map(lambda x: mx.zeros(x.shape, mx.bfloat16), model.parameters()))
    specialize(model.eval(), mx.DeviceType.gpu)
    prompt = (pixels // 64) ** 2 + TEXT_TOKENS
    hidden = model.config.text_config.hidden_size
    found = {
        "tower": kernels(
            model, lambda x: model.vision_tower(x).last_hidden_state, mx.zeros((1, pixels, pixels, 3), mx.bfloat16)
        ),
        "prefill": kernels(
            model, lambda x: prefill(model, x, make_cache(model), 2048), mx.zeros((1, prompt, hidden), mx.bfloat16)
        ),
        "token": kernels(model, *_token(model, prompt)),
    }
    quantize_modules(model, plan(dict(tree_flatten(model.parameters())), bits=4).modules)
    specialize(model, mx.DeviceType.gpu)
    found["token, 4 bits"] = kernels(model, *_token(model, prompt))
    return found


def _token(model, prompt: int):
    """A function that decodes a token behind a prompt, and its argument."""
    text = model.config.text_config
    caches = make_cache(model)
    shape = (1, text.num_key_value_heads, prompt, text.head_dim)
    for cache in caches:
        cache.update_and_fetch(mx.zeros(shape, mx.bfloat16), mx.zeros(shape, mx.bfloat16))
    return lambda token: step(model, token, caches), mx.zeros((1,), mx.int32)


def predict(found: dict[str, list[Operation]], flops: float, bandwidth: float) -> dict[str, float]:
    return {name: sum(one.seconds(flops, bandwidth) for one in graph) for name, graph in found.items()}


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def show_chips(found: dict[str, list[Operation]]):
    print(line("step", "kernels", "GFLOP", "GB moved"))
    print(line(*["---"] * 4))
    for name, graph in found.items():
        flops, moved = sum(one.flops for one in graph) / 1e9, sum(one.bytes for one in graph) / 1e9
        print(line(name, len(graph), f"{flops:.3g}", f"{moved:.3g}"))
    print()
    print(line("chip", "tower (ms)", "prefill (ms)", "first token (ms)", "tokens/s", "tokens/s, 4 bits"))
    print(line(*["---"] * 6))
    for chip, (tflops, gbs) in CHIPS.items():
        times = predict(found, tflops * 1e12, gbs * 1e9)
        first = times["tower"] + times["prefill"]
        speeds = (1 / times["token"], 1 / times["token, 4 bits"])
        cells = (f"{times['tower'] * 1e3:.0f}", f"{times['prefill'] * 1e3:.0f}", f"{first * 1e3:.0f}")
        print(line(chip, *cells, *(f"{speed:.0f}" for speed in speeds)))


def show_kernels(graph: list[Operation], chip: str):
    tflops, gbs = CHIPS[chip]
    times: dict[str, list[float]] = defaultdict(list)
    for one in graph:
        times[one.name].append(one.seconds(tflops * 1e12, gbs * 1e9))
    total = sum(map(sum, times.values()))
    print(line("operation", "times", f"ms on {chip}", "share"))
    print(line(*["---"] * 4))
    for name, took in sorted(times.items(), key=lambda pair: -sum(pair[1]))[:25]:
        print(line(name, len(took), f"{sum(took) * 1e3:.2f}", f"{sum(took) / total:.0%}"))


def show_here(size: str, pixels: int, repeats: int):
    """This machine: predicted by its own peaks, and measured, in float32."""
    peaks = Peaks()
    list(peaks.rows())
    flops, bandwidth = max(peaks.flops.values()), peaks.bandwidth
    plain = FastVlmForConditionalGeneration(random_config(size)).eval()  # the CPU's own layers can't be exported
    prompt = (pixels // 64) ** 2 + TEXT_TOKENS
    found = {
        "vision": operations(lambda x: plain.vision_tower(x).last_hidden_state, mx.zeros((1, pixels, pixels, 3))),
        "prefill": operations(
            lambda x: prefill(plain, x, make_cache(plain), 2048),
            mx.zeros((1, prompt, plain.config.text_config.hidden_size)),
        ),
        "decode": operations(*_token(plain, prompt)),
    }
    model, processor = random_model(size, mx.float32)
    mx.eval(model.parameters())
    predicted = predict(found, flops, bandwidth)
    figures = measure(model, processor, photo(), pixels, tokens=16, repeats=repeats)
    print(f"peaks measured here: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s\n")
    print(line("step", "predicted (s)", "measured (s)", "measured / predicted"))
    print(line(*["---"] * 4))
    for name, seconds in predicted.items():
        measured = 1 / figures[name].median if name == "decode" else figures[name].median
        print(line(name, f"{seconds:.3g}", f"{measured:.3g}", f"{measured / seconds:.2f}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("0.5b", "1.5b", "7b"), default="0.5b")
    parser.add_argument("--pixels", type=int, default=1024, help="side of the image (%(default)s)")
    parser.add_argument("--kernels", choices=("tower", "prefill", "token", "token, 4 bits"))
    parser.add_argument("--chip", choices=CHIPS, default="M4", help="chip for --kernels (%(default)s)")
    parser.add_argument("--here", action="store_true", help="measure this machine too")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.here:
        show_here(arguments.size, arguments.pixels, arguments.repeats)
        return
    found = graphs(arguments.size, arguments.pixels)
    if arguments.kernels:
        show_kernels(found[arguments.kernels], arguments.chip)
    else:
        show_chips(found)


if __name__ == "__main__":
    main()
