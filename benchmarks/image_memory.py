"""Peak memory of one image in FastVLM-0.5B's tower, in the forms for a GPU, beside what loading estimates.

    python benchmarks/image_memory.py                  # 512 to 4096 pixels, bfloat16 and float32; a minute
    python benchmarks/image_memory.py --real           # products, convolutions and attention computed too: very slow

Run on the CPU backend, by MLX's own allocator: the graph, its order and what is freed when are those of a GPU.
Products, convolutions, attention and GELU give as many values as they should, of the right types, but cheap ones,
unless --real is given: in bfloat16 the CPU backend would need hours for 4096 pixels. Attention holds no scores, as
Metal's fused kernel does not. MLX allocates ahead of what it computes here too, but by operations, not by command
buffers as on Metal: tests/models/test_metal.py reckons those.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from unittest import mock

import mlx_fastvlm  # noqa: F401, isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
from mlx.utils import tree_map

from mlx_fastvlm.models import memory
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.released import random_config
from mlx_fastvlm.models.vision import FastViTHD

QUERIES = 256  # that attention looks at a time with --real


def of_shape(shape: tuple[int, ...], x: mx.array) -> mx.array:
    """An array of this shape that nobody has to compute, and that needs ``x``."""
    return mx.contiguous(mx.broadcast_to(x.flatten()[:1], shape))


def convolved(x, weight, stride=1, padding=0, dilation=1, groups=1):
    step = stride if isinstance(stride, int) else stride[0]
    return of_shape((x.shape[0], -(-x.shape[1] // step), -(-x.shape[2] // step), weight.shape[0]), x)


def attended(q, k, v, scale):
    return of_shape(q.shape, mx.depends([q], [k, v])[0])


def attended_by_pieces(q, k, v, scale):
    pieces = [q[:, :, first : first + QUERIES] for first in range(0, q.shape[2], QUERIES)]
    done: list[mx.array] = []
    for piece in pieces:
        piece = mx.depends([piece], done[-1:])[0] if done else piece
        done.append(mx.softmax((piece * scale) @ k.swapaxes(-1, -2), axis=-1, precise=True) @ v)
    return mx.concatenate(done, axis=2)


CHEAP = {
    "mlx.core.conv2d": convolved,
    "mlx.core.addmm": lambda c, x, y: of_shape((*x.shape[:-1], y.shape[-1]), mx.depends([x], [c])[0]),
    "mlx.nn.Linear.__call__": lambda layer, x: of_shape((*x.shape[:-1], layer.weight.shape[0]), x),
    "mlx.core.fast.scaled_dot_product_attention": attended,
    # These write over what they read, so what takes their place does too.
    "mlx_fastvlm.models.gpu.gelu": mx.abs,
    "mlx_fastvlm.models.gpu.gelu_of_sum": mx.add,
    "mlx_fastvlm.models.gpu.gelu_of_gated_sum": lambda x, y, gate: x + y,
}
REAL = {"mlx.core.fast.scaled_dot_product_attention": attended_by_pieces}


def peak(pixels: int, dtype: mx.Dtype, real: bool) -> int:
    """Bytes beside weights and image."""
    tower = FastViTHD(random_config("0.5b").vision_config)
    tower.update(tree_map(lambda x: mx.random.normal(x.shape, dtype=dtype) * 0.02, tower.parameters()))
    specialize(tower.eval(), mx.DeviceType.gpu)
    image = mx.random.uniform(shape=(1, pixels, pixels, 3)).astype(dtype)
    mx.eval(tower.parameters(), image)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for name, function in (REAL if real else CHEAP).items():
        mock.patch(name, function).start()
    mx.eval(tower(image).last_hidden_state)
    mock.patch.stopall()
    return mx.get_peak_memory() - before


def estimate(pixels: int, dtype: mx.Dtype) -> int:
    with mock.patch.object(mx, "default_device", return_value=mx.Device(mx.gpu)):
        return memory.tower_memory(pixels, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--real", action="store_true", help="compute everything; very slow")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(peak(arguments.pixels[0], getattr(mx, arguments.dtypes[0]), arguments.real))
        return
    print("| pixels | type | peak (MB) | bytes a pixel | estimate (MB) | estimate / peak |")
    print("|---|---|---|---|---|---|")
    for dtype in arguments.dtypes:
        for pixels in arguments.pixels:
            # A process each: what one leaves in MLX's cache of buffers is another's peak.
            command = [sys.executable, __file__, "--one", "--pixels", str(pixels), "--dtypes", dtype]
            command += ["--real"] * arguments.real
            size = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            expected = estimate(pixels, getattr(mx, dtype))
            cells = f"{size / 1e6:.0f} | {size / pixels**2:.0f} | {expected / 1e6:.0f} | {expected / size:.2f}"
            print(f"| {pixels} | {dtype} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
