"""What Metal has to do for a function, told on a machine without it: the graph's kernels, one after another.

MLX traces a function for :func:`mx.export_function` as the CPU gets it. Two things differ there from a GPU, and are
bracketed while it is traced so that they count as one: what ``mx.compile`` fuses, and what MLX has a fast kernel for
(``mx.fast``). The rules say what MLX's Metal backend (0.32) starts for each operation, its copies of arrays that do
not lie as a kernel needs them included. Nothing is computed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_fastvlm.models import depthwise, gpu, kernels

# Head sizes of the fused kernels (mlx/backend/metal/scaled_dot_product_attention.cpp): for more than 8 queries, and up
# to 8. For 192 and 256 the other way is faster, and MLX takes it.
FUSED, FUSED_SHORT = {64, 72, 80, 96, 128}, {64, 96, 128, 256}

_COMPILED = type(mx.compile(lambda x: x))
# What only looks at an array differently. Some of it copies, where the array lies the wrong way.
_RESHAPES = {"Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims"}
_LOOKS = {*_RESHAPES, "AsStrided", "Broadcast", "Slice", "Transpose"}
_SAME = {"Copy", "Depends", "StopGradient"}
_ELEMENTWISE = {"Add", "AsType", "Broadcast", "Divide", "Erf", "Maximum", "Multiply", "Select", "Sigmoid", "Tanh"}


@dataclass
class Array:
    """An array of the graph; ``strides`` in values; arrays that share memory have one ``buffer``."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    strides: tuple[int, ...]
    buffer: int = field(default_factory=itertools.count().__next__)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.size

    def looks_at(self, x: Array, strides: tuple[int, ...]):
        """It is another look at ``x``."""
        self.strides, self.buffer = strides, x.buffer


@dataclass
class Kernel:
    """Something that Metal starts: MLX's name of the operation, or "copy", or what was fused."""

    name: str
    inputs: list[Array]
    outputs: list[Array]

    @property
    def elementwise(self) -> bool:
        return _ELEMENTWISE.issuperset(self.name.split("+"))


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an array whose rows lie one behind another."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _lies_in_rows(x: Array) -> bool:
    return all(n == 1 or a == b for n, a, b in zip(x.shape, x.strides, _rows(x.shape)))


def _seen_as(x: Array, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of the same values in another shape; None where they have to be copied for it."""
    pieces: list[tuple[int, int]] = []  # runs of axes that lie one behind another: values, and the stride of the last
    for n, stride in zip(x.shape, x.strides):
        if n == 1:
            continue
        if pieces and pieces[-1][1] == n * stride:
            pieces[-1] = pieces[-1][0] * n, stride
        else:
            pieces.append((n, stride))
    strides: list[int] = []
    left, step = pieces.pop() if pieces else (1, 1)
    for n in reversed(shape):
        if n > 1 and left == 1 and pieces:
            left, step = pieces.pop()
        if left % n:
            return None
        strides.append(step)
        left, step = left // n, step * n
    return tuple(reversed(strides))


class Graph:
    """A traced function.

    Attributes:
        nodes: the callback's dictionaries of all operations, in order.
        kernels: what Metal starts.
        inside: names of arrays that are computed within a fused kernel and never written.
    """

    def __init__(self, function: Any, *inputs: mx.array):
        self.nodes: list[dict[str, Any]] = []
        self.kernels: list[Kernel] = []
        self._arrays: dict[str, Array] = {}
        with _bracketed():
            mx.export_function(self._see, function, *inputs)
        self._fused, self.inside = self._regions()
        for node in self.nodes:
            self._run(node)

    @property
    def counts(self) -> Counter[str]:
        return Counter(kernel.name for kernel in self.kernels)

    def peak(self, ahead: int = 0) -> int:
        """Bytes of what the kernels write that is in memory at a time, at most.

        What no later kernel reads is gone; an elementwise kernel writes over what it alone still reads.

        Args:
            ahead: command buffers that wait while one runs: what they read stays until they have run. MLX keeps up to
                ten (mlx/transforms.cpp), of 50 operations or 50 MB that they read (mlx/backend/metal/device.cpp, for
                larger chips).
        """
        command_buffers = self._command_buffers()
        last = {x.buffer: i for i, kernel in enumerate(self.kernels) for x in kernel.inputs}
        alive: dict[int, int] = {}
        peak = 0
        for i, kernel in enumerate(self.kernels):
            ended = [b for b in alive if last[b] < i and command_buffers[last[b]] + ahead <= command_buffers[i]]
            for buffer in ended:
                del alive[buffer]
            size = kernel.outputs[0].nbytes
            over = [x.buffer for x in kernel.inputs if last[x.buffer] == i and alive.get(x.buffer) == size]
            if kernel.elementwise and over:
                del alive[over[0]]
            alive |= {x.buffer: x.nbytes for x in kernel.outputs}
            peak = max(peak, sum(alive.values()))
        return peak

    def _command_buffers(self) -> list[int]:
        """For each kernel, which command buffer it is in."""
        places, operations, size = [0], 0, 0
        for kernel in self.kernels:
            operations, size = operations + 1, size + sum(x.nbytes for x in kernel.inputs)
            full = operations > 50 or size > 50 * 2**20
            places.append(places[-1] + full)
            if full:
                operations = size = 0
        return places

    def _see(self, event: dict[str, Any]):
        if event["type"] == "primitive":
            self.nodes.append(event)
        elif event["type"] in ("inputs", "constants"):
            for name, value, *dtype in event[event["type"]]:
                shape, kind = (value, dtype[0]) if dtype else (value.shape, value.dtype)
                self._arrays[name] = Array(tuple(shape), kind, _rows(tuple(shape)))

    # Fused kernels

    def _regions(self) -> tuple[dict[str, tuple[str, list[str]]], set[str]]:
        """By the end of each fused kernel: its name, and the arrays that it reads; and all that is inside of one.

        A kernel with two outputs has two ends, and runs at the first.
        """
        made = {name: node for node in self.nodes for name, *_ in node["outputs"]}
        fused: dict[str, tuple[str, list[str]]] = {}
        inside: set[str] = set()
        for node in filter(_marks_end, self.nodes):
            todo, reads, names = [node["inputs"][0][0]], [], []
            seen: set[str] = set()
            while todo:
                name = todo.pop()
                if name in seen or name not in made:
                    continue
                seen.add(name)
                if _marks_begin(made[name]):
                    reads.append(made[name]["inputs"][0][0])
                    continue
                names.append(made[name]["name"])
                todo += [each for each, *_ in made[name]["inputs"]]
            if node["name"] == "ArcSinh":
                fused[node["outputs"][0][0]] = "+".join(reversed(names)), reads
            inside |= seen
        return fused, inside

    # Kernels

    def _run(self, node: dict[str, Any]):
        name = node["name"]
        outputs = [Array(tuple(shape), dtype, _rows(tuple(shape))) for _, shape, dtype in node["outputs"]]
        for (each, *_), array in zip(node["outputs"], outputs):
            self._arrays[each] = array
        if _marks_begin(node) or _marks_end(node):
            outputs[0].strides = self._arrays[node["inputs"][0][0]].strides
        if _marks_end(node):
            if node["outputs"][0][0] in self._fused:
                name, reads = self._fused[node["outputs"][0][0]]
                self._start(name, [self._arrays[each] for each in reads], outputs)
        elif node["outputs"][0][0] not in self.inside:
            self._dispatch(name, [self._arrays[each] for each, *_ in node["inputs"]], outputs, node["arguments"])

    def _start(self, name: str, inputs: list[Array], outputs: list[Array]):
        self.kernels.append(Kernel(name, inputs, outputs))

    def _copied(self, x: Array) -> Array:
        copy = Array(x.shape, x.dtype, _rows(x.shape))
        self._start("copy", [x], [copy])
        return copy

    def _dispatch(self, name: str, inputs: list[Array], outputs: list[Array], arguments: list[Any]):
        if name in _LOOKS:
            self._look(name, inputs[0], outputs[0], arguments)
        elif name in _SAME:
            for each, like in zip(outputs, inputs[-len(outputs) :]):
                each.looks_at(like, like.strides)
        elif name == "Split":
            for each in outputs:
                each.looks_at(inputs[0], inputs[0].strides)
        elif name in ("Concatenate", "Pad"):  # a copy of each part; a fill and a copy
            for each in inputs:
                self._start(name, [each], outputs)
        else:
            self._start(name, [self._as_needed(name, i, each) for i, each in enumerate(inputs)], outputs)

    def _look(self, name: str, x: Array, out: Array, arguments: list[Any]):
        """Another look at an array, or a copy where that can't be had."""
        if name == "AsStrided":
            out.looks_at(x if _lies_in_rows(x) else self._copied(x), tuple(arguments[1]))
            return
        strides: tuple[int, ...] | None
        if name == "Transpose":
            strides = tuple(x.strides[axis] for axis in arguments[0])
        elif name == "Slice":
            strides = tuple(a * b for a, b in zip(x.strides, arguments[2]))
        elif name == "Broadcast":
            more = len(out.shape) - len(x.shape)
            before = zip((1,) * more + x.shape, (0,) * more + x.strides, out.shape)
            strides = tuple(0 if had != has else stride for had, stride, has in before)
        else:
            strides = _seen_as(x, out.shape)
        if strides is None:
            self._start("copy", [x], [out])
        else:
            out.looks_at(x, strides)

    def _as_needed(self, name: str, place: int, x: Array) -> Array:
        """An input as a kernel takes it."""
        if name == "Convolution" and not _lies_in_rows(x):
            return self._copied(x)
        if name in ("Matmul", "AddMM") and place < 2 and 1 not in x.strides[-2:]:
            return self._copied(x)
        if name == "QuantizedMatmul" and not _lies_in_rows(x):
            return self._copied(x)
        return x


def _marks_begin(node: dict[str, Any]) -> bool:
    return node["name"] in ("ArcCosh", "Sort")


def _marks_end(node: dict[str, Any]) -> bool:
    return node["name"] in ("ArcSinh", "ArcTan2")  # an output, and a further one of the same kernel


def is_compiled(value: Any) -> bool:
    """Whether it is a function that ``mx.compile`` made."""
    return isinstance(value, _COMPILED)


def _begin(x: Any) -> Any:
    if not isinstance(x, mx.array):
        return x
    return mx.arccosh(x) if mx.issubdtype(x.dtype, mx.floating) else mx.sort(x)


def _bracket(function: Any) -> Any:
    """The same function, its arrays marked on their way in and out: by operations that no network has."""

    @functools.wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        done = function(*map(_begin, arguments), **{name: _begin(x) for name, x in named.items()})
        if isinstance(done, mx.array):
            return mx.arcsinh(done)
        first = mx.arcsinh(done[0])
        return first, *(mx.arctan2(further, first) for further in done[1:])

    return marked


def _bracket_attention(attention: Any) -> Any:
    """Fused where Metal has a kernel for it, as many operations as it takes where not.

    The kernel for more than 8 queries writes (batch, queries, heads, head size), and gives another look at that
    (``eval_gpu`` in mlx/backend/metal/scaled_dot_product_attention.cpp).
    """
    short = _bracket(attention)
    long = _bracket(lambda *arguments, **named: attention(*arguments, **named).transpose(0, 2, 1, 3))

    @functools.wraps(attention)
    def marked(q: mx.array, k: mx.array, v: mx.array, **named: Any) -> mx.array:
        queries, size = q.shape[2:]
        if size not in (FUSED if queries > 8 else FUSED_SHORT):
            return attention(q, k, v, **named)
        return long(q, k, v, **named).transpose(0, 2, 1, 3) if queries > 8 else short(q, k, v, **named)

    return marked


def _own_kernel(
    x: mx.array, weight: mx.array, stride: int, ending: str, more: list[mx.array], theirs: depthwise.Theirs
) -> Any:
    """Something that reads what an own kernel reads, and gives what it gives: one kernel."""

    def same(x: mx.array, weight: mx.array, *more: mx.array) -> tuple[mx.array, ...]:
        (y,) = gpu._by_mlx(stride, "plain")(x, weight)
        return tuple(sum(more, y) for _ in kernels.ENDINGS[ending][1])

    return _bracket(same)(x, weight, *more)


@contextlib.contextmanager
def _bracketed():
    with contextlib.ExitStack() as patches:
        for name in ("layer_norm", "rms_norm", "rope"):
            patches.enter_context(mock.patch.object(mx.fast, name, _bracket(getattr(mx.fast, name))))
        patches.enter_context(mock.patch.object(mx, "dequantize", _bracket(mx.dequantize)))
        attention = mx.fast.scaled_dot_product_attention
        name = "scaled_dot_product_attention"
        patches.enter_context(mock.patch.object(mx.fast, name, _bracket_attention(attention)))
        patches.enter_context(mock.patch.object(depthwise, "own", _own_kernel))
        for name, value in vars(gpu).items():
            if is_compiled(value):
                patches.enter_context(mock.patch.object(gpu, name, _bracket(value)))
        yield


def graph_of(model: Any, function: Any, *inputs: mx.array) -> Graph:
    """The graph of ``function(*inputs)``, the model's parameters being inputs too, so that none is computed."""
    parameters = tree_flatten(model.parameters())
    names = [name for name, _ in parameters]
    count = len(inputs)

    def traced(*arrays: mx.array) -> Any:
        model.update(tree_unflatten(list(zip(names, arrays[count:]))))
        return function(*arrays[:count])

    try:
        return Graph(traced, *inputs, *(x for _, x in parameters))
    finally:
        model.update(tree_unflatten(parameters))
