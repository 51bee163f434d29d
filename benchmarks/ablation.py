"""What each of the CPU's kernels gains: the tower, and the decoder's prefill, with one of them taken back at a time.

    python benchmarks/ablation.py                # random weights of the 0.5B model, float32, 1024 pixels

Each row replaces one function of cpu_ops.py by what MLX offers itself. The rows run in turns; the table gives medians.
"""

import argparse
import statistics
import sys

import mlx_fastvlm  # noqa: F401, isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
import mlx.nn as nn

from mlx_fastvlm.cache.policy import make_cache
from mlx_fastvlm.evaluation.speed import timed
from mlx_fastvlm.generation.decoding import prefill
from mlx_fastvlm.models import cpu_ops
from mlx_fastvlm.models.released import random_model

PREFILL = 276


def of_whole_images(convolve):
    """A depthwise convolution of (image, weight, stride) in the place of ``cpu_ops.depthwise_conv2d``."""

    def replacing(x, weight, bias=None, stride=1, then=lambda y: y, before=None):
        x = x if before is None else before.rows(x, 0, before.height)
        y = convolve(x, weight, stride)
        return then(y if bias is None else y + bias)

    return replacing


@of_whole_images
def plain_convolution(x, weight, stride):
    return mx.conv2d(x, weight, stride, weight.shape[1] // 2, groups=x.shape[-1])


@of_whole_images
def shift_and_add(x, weight, stride):
    """A product and a sum for each place of the kernel, over whole arrays."""
    size, (_, height, width, channels) = weight.shape[1], x.shape
    padded = mx.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)])
    padded = mx.repeat(padded, weight.shape[0] // channels, axis=-1)
    y = None
    for i in range(size):
        for j in range(size):
            part = padded[:, i : i + height : stride, j : j + width : stride] * weight[:, i, j, 0]
            y = part if y is None else y + part
    return y


def whole(*arguments, **named):
    """The banded products, but of the whole image at once."""
    before, cpu_ops.PIECE = cpu_ops.PIECE, 2**40
    y = DEPTHWISE(*arguments, **named)
    cpu_ops.PIECE = before
    return y


def plain_attention(q, k, v, scale, mask=None):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


DEPTHWISE = cpu_ops.depthwise_conv2d
TOWER = {
    "all of them": {},
    "depthwise: one band": {"depthwise_conv2d": whole},
    "depthwise: shift and add": {"depthwise_conv2d": shift_and_add},
    "depthwise: mx.conv2d": {"depthwise_conv2d": plain_convolution},
    "GELU: nn.gelu": {"gelu": nn.gelu},
    "attention: MLX's": {"attention": plain_attention},
}
DECODER = {
    "all of them": {},
    "SiLU: nn.silu": {"silu": nn.silu},
    "attention: MLX's": {"attention": plain_attention},
}


def measure(rows, run, repeats):
    times = {name: [] for name in rows}
    for repeat in range(repeats + 1):
        for name, replaced in rows.items():
            originals = {function: getattr(cpu_ops, function) for function in replaced}
            for function, plain in replaced.items():
                setattr(cpu_ops, function, plain)
            seconds, _ = timed(run)
            for function, original in originals.items():
                setattr(cpu_ops, function, original)
            print(name, round(seconds, 2), file=sys.stderr)
            if repeat:
                times[name].append(seconds)
    best = statistics.median(times["all of them"])
    print("| | seconds | against all of them |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / best:.2f}x |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    mx.set_default_device(mx.cpu)
    model, _ = random_model("0.5b", mx.float32)
    pixels, embeddings = mx.random.uniform(shape=(1, 1024, 1024, 3)), mx.random.normal((1, PREFILL, 896))
    mx.eval(model.parameters(), pixels, embeddings)
    print("Tower\n")
    measure(TOWER, lambda: model.vision_tower(pixels).last_hidden_state, repeats)
    print(f"\nPrefill of {PREFILL} tokens\n")
    measure(DECODER, lambda: prefill(model, embeddings, make_cache(model), 2048), repeats)


if __name__ == "__main__":
    main()
