"""An own kernel for depthwise convolutions on a GPU, in what Metal's language and CUDA have in common.

MLX's Metal kernel computes one output a thread, reads each pixel from memory for each of up to 49 products, and in
bfloat16 rounds every product. Here a thread computes a patch of one channel: the channel's weights stay in its
registers, a row of pixels is read once for all outputs of the patch that need it, sums are float32, and what follows
the convolution (bias, skip connection, GELU) costs no further pass.

It ran on no GPU yet, so nothing takes it unasked before it was proven there (``depthwise.py``). Its arithmetic is
tested as C++ on a CPU (tests/models/test_kernels.py).
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import mlx.core as mx

# The outputs that a thread computes, rows by columns, by the stride.
PATCH = {1: (4, 4), 2: (2, 4)}
# Threads of a group: along channels, so that what they read lies side by side.
GROUP = 32

# Which number of the grid this thread is.
PLACE = {
    "metal": "const uint3 place = thread_position_in_grid;",
    "cuda": """
const uint3 place = make_uint3(
    blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z
);""",
}

# Template arguments: T, K (side of the kernel), S (stride), M (outputs a channel), ROWS and COLUMNS of a patch.
SUMS = """
const int height = x_shape[1], width = x_shape[2], inputs = x_shape[3], outputs = weight_shape[0];
const int out_height = (height + S - 1) / S, out_width = (width + S - 1) / S;
const int strips = (out_height + ROWS - 1) / ROWS;
const int c = place.x, left = place.y * COLUMNS, top = place.z % strips * ROWS, image = place.z / strips;
if (c >= outputs || left >= out_width || image >= x_shape[0]) {
  return;
}
float taps[K * K];
#pragma unroll
for (int i = 0; i < K * K; ++i) {
  taps[i] = static_cast<float>(weight[c * K * K + i]);
}
float sums[ROWS * COLUMNS];
#pragma unroll
for (int i = 0; i < ROWS * COLUMNS; ++i) {
  sums[i] = 0.0f;
}
#pragma unroll
for (int i = 0; i < (ROWS - 1) * S + K; ++i) {
  const int y = top * S - K / 2 + i;
  if (y < 0 || y >= height) {
    continue;
  }
  const size_t start = (static_cast<size_t>(image) * height + y) * width;
  float line[(COLUMNS - 1) * S + K];
  #pragma unroll
  for (int j = 0; j < (COLUMNS - 1) * S + K; ++j) {
    const int at = left * S - K / 2 + j;
    line[j] = at >= 0 && at < width ? static_cast<float>(x[(start + at) * inputs + c / M]) : 0.0f;
  }
  #pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const int tap = i - row * S;
    if (tap < 0 || tap >= K) {
      continue;
    }
    #pragma unroll
    for (int column = 0; column < COLUMNS; ++column) {
      #pragma unroll
      for (int j = 0; j < K; ++j) {
        sums[row * COLUMNS + column] += taps[tap * K + j] * line[column * S + j];
      }
    }
  }
}
#pragma unroll
for (int row = 0; row < ROWS; ++row) {
  #pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    if (top + row >= out_height || left + column >= out_width) {
      continue;
    }
    const size_t at =
        ((static_cast<size_t>(image) * out_height + top + row) * out_width + left + column) * outputs + c;
    float value = sums[row * COLUMNS + column];
    ENDING
  }
}
"""

BIAS = "value += static_cast<float>(bias[c]);"
WRITE = "out[at] = static_cast<T>(value);"
# max(x, 0) - |x| Phi(-|x|) within 5e-7, the tail as the 32nd power of a polynomial (cpu_ops.py); Metal has no erf.
GELU = """
    const float a = value < 0.0f ? (value > -5.75f ? -value : 5.75f) : (value < 5.75f ? value : 5.75f);
    float p = -1.30686302e-5f * a;
    p = (p + 2.49746962e-4f) * a;
    p = (p - 8.97201482e-4f) * a;
    p = (p - 9.41797858e-3f) * a;
    p = (p - 2.44019538e-2f) * a;
    p += 9.78572183e-1f;
    p *= p;
    p *= p;
    p *= p;
    p *= p;
    p *= p;
    value = (value > 0.0f ? value : 0.0f) - a * p;
"""

# What follows the sums: further inputs, outputs, and code. "skip" writes a second array with one more bias.
ENDINGS: dict[str, tuple[list[str], list[str], str]] = {
    "plain": ([], ["out"], WRITE),
    "bias": (["bias"], ["out"], BIAS + WRITE),
    "gelu": (["bias"], ["out"], BIAS + GELU + WRITE),
    "skip": (
        ["bias", "more"],
        ["out", "skip"],
        BIAS + WRITE + "skip[at] = static_cast<T>(value + static_cast<float>(more[c]));",
    ),
}

# Changes with the code, so that another version of it is proven anew.
VERSION = hashlib.sha256(repr((SUMS, ENDINGS, PATCH, PLACE)).encode()).hexdigest()[:12]


def backend() -> str | None:
    """What this machine's GPU understands: "metal", "cuda", or None."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return None
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.cuda.is_available() else None


def body(ending: str) -> str:
    """The code that every thread runs, but for its place."""
    return SUMS.replace("ENDING", ENDINGS[ending][2])


@functools.cache
def _kernel(backend: str, ending: str) -> Any:
    make: Any = {"metal": mx.fast.metal_kernel, "cuda": mx.fast.cuda_kernel}[backend]
    more, outputs, _ = ENDINGS[ending]
    return make(
        name=f"fastvlm_depthwise_{ending}",
        input_names=["x", "weight", *more],
        output_names=outputs,
        source=PLACE[backend] + body(ending),
    )


def depthwise(x: mx.array, weight: mx.array, stride: int, ending: str, *more: mx.array) -> list[mx.array]:
    """A depthwise convolution and what follows it, in one kernel.

    Args:
        x: (batch, height, width, channels), float32, float16 or bfloat16; all arrays have its type.
        weight: (outputs, k, k, 1), outputs one or two times the channels, k odd.
        stride: 1 or 2; the padding is k // 2.
        ending: of ``ENDINGS``.
        more: (outputs,), the ending's inputs.

    Returns:
        The ending's outputs, each (batch, height / stride, width / stride, outputs).

    Raises:
        RuntimeError: when it is computed, where the GPU's compiler refuses the code.
    """
    which = backend()
    assert which is not None
    batch, height, width, channels = x.shape
    outputs, k = weight.shape[:2]
    rows, columns = PATCH[stride]
    shape = (batch, -(-height // stride), -(-width // stride), outputs)
    written = ENDINGS[ending][1]
    computed: list[mx.array] = _kernel(which, ending)(
        inputs=[x, weight, *more],
        template=[
            ("T", x.dtype),
            ("K", k),
            ("S", stride),
            ("M", outputs // channels),
            ("ROWS", rows),
            ("COLUMNS", columns),
        ],
        grid=(-(-outputs // GROUP) * GROUP, -(-shape[2] // columns), batch * -(-shape[1] // rows)),
        threadgroup=(GROUP, 1, 1),
        output_shapes=[shape] * len(written),
        output_dtypes=[x.dtype] * len(written),
    )
    return computed
