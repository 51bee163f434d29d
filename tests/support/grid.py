"""A GPU's kernel compiled as C++: the grid is a loop, and bfloat16 a small type. What is tested is its arithmetic."""

import ctypes
import subprocess

import mlx.core as mx
import numpy as np

from mlx_fastvlm.models import kernels

SHIM = """
#include <cstddef>
#include <cstdint>
#include <cstring>
struct uint3 { unsigned x, y, z; };
struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float value) {
    uint32_t all;
    std::memcpy(&all, &value, 4);
    bits = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
  }
  explicit operator float() const {
    uint32_t all = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &all, 4);
    return value;
  }
};
"""
# As MLX writes the signature: inputs with their shapes, outputs; each thread of the grid in turn.
SIGNATURE = """
template <typename T, int K, int S, int ROWS, int COLUMNS>
static void kernel_{name}(const T* x, const int* x_shape, const T* weight, const int* weight_shape, const T* bias,
                   const T* more, T* out, T* skip, const int* grid, const int M) {{
  for (unsigned z = 0; z < unsigned(grid[2]); ++z)
    for (unsigned y = 0; y < unsigned(grid[1]); ++y)
      for (unsigned i = 0; i < unsigned(grid[0]); ++i)
        [&](uint3 place) {{ {body} }}(uint3{{i, y, z}});
}}
"""
EXPORT = """
extern "C" void {name}_{type}_{k}_{stride}(
    const void* x, const int* x_shape, const void* weight, const int* weight_shape, const void* bias, const void* more,
    void* out, void* skip, const int* grid, const int doubled) {{
  kernel_{name}<{type}, {k}, {stride}, {rows}, {columns}>(
      (const {type}*)x, x_shape, (const {type}*)weight, weight_shape, (const {type}*)bias, (const {type}*)more,
      ({type}*)out, ({type}*)skip, grid, doubled);
}}
"""
TYPES = {mx.float32: "float", mx.bfloat16: "bfloat16"}
KERNELS = [(3, 1), (3, 2), (7, 1), (7, 2)]  # side, stride
COMPILED = [*(("float", *which) for which in KERNELS), ("bfloat16", 7, 1)]


def compiled(folder):
    """A library of all kernels."""
    parts = [SHIM]
    for ending in kernels.ENDINGS:
        parts.append(SIGNATURE.format(name=ending, body=kernels.body(ending)))
        for kind, k, stride in COMPILED:
            rows, columns = kernels.PATCH[stride]
            how = {"type": kind, "k": k, "stride": stride, "rows": rows, "columns": columns}
            parts.append(EXPORT.format(name=ending, **how))
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("".join(parts))
    command = ["g++", "-std=c++17", "-O0", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run([*command, "-Wno-unused", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def run(library, call):
    """What the kernel gives for the keywords of MLX's call of it: inputs, template, grid, shapes, types."""
    inputs, template = call["inputs"], dict(call["template"])
    mx.eval(inputs)
    name = f"{call['name']}_{TYPES[template['T']]}_{template['K']}_{template['S']}"
    memory = [_bytes(x) for x in inputs]
    shapes = [np.array(x.shape, np.int32) for x in inputs[:2]]
    outputs = [np.full(np.prod(shape) * template["T"].size, 0xFF, np.uint8) for shape in call["output_shapes"]]
    pointers = [memory[0], shapes[0], memory[1], shapes[1], *memory[2:], *[None] * (4 - len(memory))]
    pointers += [*outputs, *[None] * (2 - len(outputs)), np.array(call["grid"], np.int32)]
    addresses = [None if x is None else x.ctypes.data_as(ctypes.c_void_p) for x in pointers]
    getattr(library, name)(*addresses, template["M"])
    return [mx.array(x).view(template["T"]).reshape(s) for x, s in zip(outputs, call["output_shapes"])]


def _bytes(x):
    return np.array(mx.contiguous(x).flatten().view(mx.uint8))
