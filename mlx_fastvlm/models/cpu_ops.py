"""Faster forms of what MLX's CPU backend is slow at, in float32; ``cpu.py`` has the layers that use them.

A CPU spends most of an image's time in four things that are easily avoided (docs/performance.md has the figures):
depthwise convolutions, which take a naive loop; erf, exp and sigmoid, which take a library call for each element; large
temporary arrays, whose pages the operating system clears at each use; and waiting for one core, while others have
nothing to do (``streams.py`` shares the work out).

GELU, SiLU and exp of large arrays are compiled (``mx.compile``): they would take a quarter of an image's time, and that
is worth seconds of the system's C++ compiler, which MLX runs for it (``compiler.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import activations
from .compiler import may_compile
from .ops import causal_mask
from .streams import free_cores, spread

# Work is cut into pieces of about this many values, 2 MiB, which a processor's caches hold.
PIECE = 2**19
# Columns that one banded matrix computes: few enough that little of it is zero, enough for a matrix product.
STRIP = 16
# Values of a cache line.
LINE = 16
# Tokens from which on a product is bound by arithmetic: cores then share the tokens, for fewer the matrix.
MANY = 64
# Tokens of a piece at least: for each piece a matrix is read again.
ENOUGH = 512
# Values from which on compiling pays. The demo's images have fewer at a time, so nobody waits for a compiler there.
LARGE = PIECE // 2
# Values up to which a library call for each costs less than the many operations that avoid it: a token's.
SINGLE = 2**13
# Tokens from which on a packed matrix is unpacked first: MLX's own product unpacks it anew for each token.
UNPACKED = 16
# Tokens up to which small products in a row are faster than one, and multiplications that such a product has at most.
FEW = 32
SMALL = 2**20
# Pixels that a convolution reads at most, and writes, to be one product with a matrix of all of both for each channel.
FEW_READ, FEW_WRITTEN = 256, 64


def with_gradients_of(plain: Callable[..., mx.array], fast: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``fast``, differentiated as ``plain``, which keeps less for the gradients than ``fast``'s many steps would."""
    function = mx.custom_function(fast)

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        inputs = list(primals) if isinstance(primals, (tuple, list)) else [primals]
        gradients = mx.vjp(plain, inputs, [cotangent])[1]
        return gradients if len(inputs) > 1 else gradients[0]

    return function  # type: ignore[return-value]  # its stub promises an object


# Activations

# Each is made of a tail that falls to nothing, a power of something so flat that a short polynomial will do: fitted up
# to END for the smallest maximum error, and taken as its value there beyond. Every step is a pass over the array, so
# few steps are what counts.


def _polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """The polynomial with these coefficients, highest first, and no constant."""
    y = coefficients[0] * x
    for coefficient in coefficients[1:]:
        y = (y + coefficient) * x
    return y


def _squared(x: mx.array, times: int) -> mx.array:
    for _ in range(times):
        x = x * x
    return x


def _forms(
    reference: Callable[[mx.array], mx.array],
    end: float,
    coefficients: tuple[float, ...],
    finish: Callable[[mx.array, mx.array, mx.array], mx.array],
) -> list[Callable[[mx.array], mx.array]]:
    """An activation's plain form and its compiled one, both differentiated as ``reference``.

    Args:
        end, coefficients: of its tail's polynomial.
        finish: of x, of abs(x) up to ``end``, and of the polynomial of that.
    """

    def argument(x: mx.array) -> mx.array:
        return mx.minimum(mx.abs(x), end)

    def plain(x: mx.array) -> mx.array:
        a = argument(x)
        return finish(x, a, _polynomial(a, coefficients))

    # MLX fuses at most eleven operations in a row, so there are two pieces that it fuses whole.
    fused_polynomial = mx.compile(lambda x: _polynomial(argument(x), coefficients))
    fused_finish = mx.compile(lambda x, polynomial: finish(x, argument(x), polynomial))

    def compiled(x: mx.array) -> mx.array:
        return fused_finish(x, fused_polynomial(x))

    return [with_gradients_of(reference, form) for form in (plain, compiled)]


def _gelu_from(x: mx.array, a: mx.array, polynomial: mx.array) -> mx.array:
    """max(x, 0) - a Phi(-a), with Phi(-a) so that the product is within 5e-7."""
    return mx.maximum(x, 0) - a * _squared(polynomial + 9.78572183e-1, 5)


_NORMAL = (-1.30686302e-5, 2.49746962e-4, -8.97201482e-4, -9.41797858e-3, -2.44019538e-2)
_gelus = _forms(activations.gelu, 5.75, _NORMAL, _gelu_from)


_EXP_END = 24.0
_EXP = (5.45443069e-7, -4.03514940e-5, 1.95266573e-3, -6.24998124e-2)


def _exp_polynomial(x: mx.array) -> mx.array:
    return _polynomial(mx.minimum(x, _EXP_END), _EXP)


def _exp_from(polynomial: mx.array) -> mx.array:
    return _squared(polynomial + 1.0, 4)


_fused_exp_polynomial, _fused_exp_from = mx.compile(_exp_polynomial), mx.compile(_exp_from)


def _exp_of_negative(x: mx.array) -> mx.array:
    """exp(-x) for x from 0 on, within 1e-6."""
    if x.size > LARGE and may_compile():
        return _fused_exp_from(_fused_exp_polynomial(x))
    return _exp_from(_exp_polynomial(x))


def _silu_from(x: mx.array, a: mx.array, polynomial: mx.array) -> mx.array:
    """max(x, 0) - a exp(-a) / (1 + exp(-a))."""
    t = _exp_from(polynomial)
    return mx.maximum(x, 0) - a * t / (1 + t)


_silus = _forms(activations.silu, _EXP_END, _EXP, _silu_from)


def gelu(x: mx.array) -> mx.array:
    """GELU within 1e-6. Any shape, float32."""
    return tokenwise(x, lambda x: _best(_gelus, x))


def silu(x: mx.array) -> mx.array:
    """SiLU within 3e-6. Any shape, float32."""
    if x.size <= SINGLE:
        return activations.silu(x)
    return tokenwise(x, lambda x: _best(_silus, x))


def _best(forms: list[Callable[[mx.array], mx.array]], x: mx.array) -> mx.array:
    """The plain form of an activation, or the compiled one where that pays."""
    plain, compiled = forms
    if x.size > LARGE and may_compile():
        return compiled(mx.contiguous(x))  # a transposed array would need kernels of its own
    return plain(x)


# What each token has to itself


def tokenwise(x: mx.array, apply: Callable[[mx.array], mx.array], width: int = 0) -> mx.array:
    """``apply(x)``, where each token (or pixel) is computed on its own: many of them in pieces, on all cores.

    Args:
        x: (..., inputs).
        apply: (tokens, inputs) -> (tokens, outputs), and the same for more leading axes.
        width: of the widest array on the way, if that is wider than ``x``.
    """
    tokens, cores = x.size // x.shape[-1], free_cores()
    if tokens < MANY:
        return apply(x)
    at_a_time = max(ENOUGH, PIECE // max(width, x.shape[-1]))
    pieces = -(-tokens // (at_a_time * cores)) * cores  # so that each core has as many
    if pieces == 1:
        return apply(x)
    done = spread(x.reshape(tokens, -1), _shares(tokens, pieces), lambda x, share: apply(x[share]))
    return mx.concatenate(done).reshape(*x.shape[:-1], -1)


def linear(x: mx.array, layer: nn.Module, apply: Callable[[mx.array], mx.array]) -> mx.array:
    """The product of ``x``, (..., inputs), and a layer's matrix, plain or quantized; its bias added.

    A few tokens times a large matrix are bound by memory: there each core reads a part of the matrix.

    Args:
        apply: the same in one product.
    """
    tokens, cores = x.size // x.shape[-1], free_cores()
    if "scales" in layer and tokens >= UNPACKED:
        values = layer.weight.shape[0] * x.shape[-1]
        # A part at a time: of the head, the whole would be the largest array.
        parts = 1 if values < PIECE // 4 else -(-values // (2 * PIECE * cores)) * cores
        return _by_outputs(x, layer, parts, _some_unpacked_outputs)
    if not _few(x, layer):
        return tokenwise(x, apply)
    return _by_outputs(x, layer, cores, _some_outputs)


def swiglu(x: mx.array, gate: nn.Module, up: nn.Module) -> mx.array:
    """SiLU of a linear layer times another, (..., inputs) -> (..., outputs); for few tokens, a core a share of both."""
    if not _few(x, gate) or "bias" in gate or "bias" in up:
        y: mx.array = silu(gate(x)) * up(x)
        return y

    def some_outputs(x: mx.array, gate: nn.Module, share: slice) -> mx.array:
        return silu(_some_outputs(x, gate, share)) * _some_outputs(x, up, share)

    return _by_outputs(x, gate, free_cores(), some_outputs)


def _few(x: mx.array, layer: nn.Module) -> bool:
    """Whether a product is bound by memory: of few tokens with a large matrix."""
    tokens = x.size // x.shape[-1]
    return tokens < (UNPACKED if "scales" in layer else MANY) and layer.weight.size >= PIECE // 4


def _by_outputs(x: mx.array, layer: nn.Module, parts: int, compute: Callable[..., mx.array]) -> mx.array:
    """``compute(x, layer, share)`` for so many shares of the outputs, put together, and the bias added."""
    outputs = layer.weight.shape[0]
    done = spread(x.reshape(-1, x.shape[-1]), _shares(outputs, parts), lambda x, share: compute(x, layer, share))
    y = mx.concatenate(done, axis=-1).reshape(*x.shape[:-1], outputs)
    return y + layer.bias if "bias" in layer else y


def _packed(layer: nn.Module, share: slice) -> tuple[mx.array, mx.array, mx.array | None]:
    """Some rows of a quantized layer's matrix: weights, scales, biases."""
    biases = layer.get("biases")
    return layer.weight[share], layer.scales[share], None if biases is None else biases[share]


def _some_unpacked_outputs(x: mx.array, layer: nn.Module, share: slice) -> mx.array:
    """(tokens, inputs) -> (tokens, outputs of that share) of a quantized layer, without a bias."""
    weight = mx.dequantize(*_packed(layer, share), layer.group_size, layer.bits, layer.mode)
    return x @ mx.stop_gradient(weight).astype(x.dtype).T


def _some_outputs(x: mx.array, layer: nn.Module, share: slice) -> mx.array:
    """(tokens, inputs) -> (tokens, outputs of that share), without a bias."""
    if "scales" in layer:
        return mx.quantized_matmul(x, *_packed(layer, share), True, layer.group_size, layer.bits, layer.mode)
    weight, tokens = layer.weight[share], len(x)
    # OpenBLAS multiplies a small matrix as it lies, a larger one only once it has copied it in another order.
    blocks = _blocks(*weight.shape, tokens) if tokens <= FEW else 1
    y: mx.array = x[None] @ weight.reshape(blocks, -1, weight.shape[1]).swapaxes(-1, -2)
    return y.swapaxes(0, 1).reshape(tokens, -1)


@functools.cache
def _blocks(outputs: int, inputs: int, tokens: int) -> int:
    """Into how many equal blocks of at least four rows a matrix is cut, so that one is a product of SMALL or less."""
    least = -(-tokens * outputs * inputs // SMALL)
    return next((n for n in range(least, outputs // 4 + 1) if outputs % n == 0), 1)


def _shares(total: int, count: int) -> list[slice]:
    """``total`` things in ``count`` shares, as equal as can be."""
    each = -(-total // count)
    return [slice(first, first + each) for first in range(0, total, each)]


# Attention


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None = None) -> mx.array:
    """Scaled dot-product attention, some heads at a time.

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, heads or a divisor of it, keys, head_dim).
        mask: bool, broadcast to (batch, 1, queries, keys), True where a query may look; or "causal"; or None.

    Returns:
        The shape of ``q``.
    """

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    return with_gradients_of(plain, lambda q, k, v: _attention_by_heads(q, k, v, scale, mask))(q, k, v)


def _attention_by_heads(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    (batch, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
    # Query heads that share a key head: (batch, key heads, queries of all of them, head_dim).
    shared = heads // kv_heads
    q = (q * scale).reshape(batch, kv_heads, shared * queries, -1)
    if isinstance(mask, str):
        mask = causal_mask(queries, keys)
    # Some heads at a time: their scores are the tower's largest arrays.
    group = min(max(1, 2 * PIECE // (batch * shared * queries * keys)), -(-kv_heads // free_cores()))

    def some_heads(q: mx.array, part: slice) -> mx.array:
        scores = q[:, part] @ k[:, part].swapaxes(-1, -2)
        if mask is not None:
            scores = mx.where(mask, scores.reshape(batch, -1, queries, keys), -1e9).reshape(scores.shape)
        weights = _exp_of_negative(scores.max(axis=-1, keepdims=True) - scores)
        return (weights @ v[:, part]) / weights.sum(axis=-1, keepdims=True)

    done = spread(q, [slice(first, first + group) for first in range(0, kv_heads, group)], some_heads)
    return mx.concatenate(done, axis=1).reshape(batch, heads, queries, -1)


# Depthwise convolution


@dataclass(frozen=True)
class Before:
    """What comes before a convolution: ``rows(x, first, last)``, of an array (batch, last - first, width, channels)."""

    height: int
    width: int
    rows: Callable[[mx.array, int, int], mx.array]


def depthwise_conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    stride: int = 1,
    then: Callable[[mx.array], mx.array] = lambda y: y,
    before: Before | None = None,
) -> mx.array:
    """Convolve each channel on its own, and apply ``then``, a band of rows at a time through both.

    Args:
        x: (batch, height, width, in_channels), float32; or what ``before`` makes that of.
        weight: (out_channels, k, k, 1), k odd; see ``vision.DepthwiseConv2d``, also for what ``stride`` does.
        bias: (out_channels,).
        then: what follows for each pixel on its own: (batch, rows, width, out_channels) -> (batch, rows, width, any).
        before: what comes before, computed for each band too.

    Returns:
        (batch, height / stride, width / stride, channels of ``then``).
    """
    before = before or Before(x.shape[1], x.shape[2], lambda x, first, last: x[:, first:last])
    batch, height, width = len(x), before.height, before.width
    size = weight.shape[1]
    out_height, out_width = -(-height // stride), -(-width // stride)
    if height * width <= FEW_READ and out_height * out_width <= FEW_WRITTEN:
        return then(_small_convolution(before.rows(x, 0, height), weight, bias, stride))
    bands = -(-batch * out_height * out_width * weight.shape[0] // PIECE)
    bands = min(out_height, -(-bands // free_cores()) * free_cores())  # so that each core has as many
    rows = -(-out_height // bands)
    strips = -(-out_width // STRIP)
    convolve = _band_convolution(stride, rows, strips)
    # What the strips and rows of the last band read beyond the image is zeros, and what they compute from it is cut.
    tall, wide = stride * (rows + (size - 1) // stride), stride * STRIP * strips + size - stride
    # Contiguous, since OpenBLAS copies transposed ones for each product, under a lock. Gradients take another way.
    matrices = mx.contiguous(mx.stop_gradient(banded(weight, stride)))
    if bias is None:
        bias = mx.zeros(weight.shape[0])

    def band(x: mx.array, top: int) -> mx.array:
        above, left = size // 2, size // 2
        first = top * stride - above
        lines = before.rows(x, max(first, 0), min(first + tall, height))
        missing = max(-first, 0)
        padding = [(0, 0), (missing, tall - missing - lines.shape[1]), (left, wide - left - width), (0, 0)]
        y = convolve(mx.pad(lines, padding), weight, bias, matrices)
        return then(y[:, : out_height - top, :out_width])

    done = spread(x, range(0, out_height, rows), band)
    return done[0] if len(done) == 1 else mx.concatenate(done, axis=1)


def _small_convolution(x: mx.array, weight: mx.array, bias: mx.array | None, stride: int) -> mx.array:
    """The same for few pixels: a product for each channel, of all images' pixels with all that its kernel says of them.

    Its gradients are products too.
    """
    batch, height, width, channels = x.shape
    outputs, size = weight.shape[:2]
    out_height, out_width = -(-height // stride), -(-width // stride)
    places = _places(height, width, size, stride)
    matrices = (weight.reshape(outputs, -1) @ places).reshape(channels, outputs // channels, height * width, -1)
    pixels = x.reshape(batch, -1, channels).transpose(2, 0, 1)[:, None]
    y = (pixels @ matrices).reshape(outputs, batch, out_height, out_width).transpose(1, 2, 3, 0)
    return y if bias is None else y + bias


@functools.lru_cache(maxsize=32)
def _places(height: int, width: int, size: int, stride: int) -> mx.array:
    """(size * size, height * width * outputs): 1 where a kernel's weight lies between a pixel read and one written."""
    outputs = -(-height // stride), -(-width // stride)
    found = np.zeros((size, size, height, width, *outputs), np.float32)
    for y, x in np.ndindex(outputs):
        for i, j in np.ndindex(size, size):
            row, column = y * stride + i - size // 2, x * stride + j - size // 2
            if 0 <= row < height and 0 <= column < width:
                found[i, j, row, column, y, x] = 1
    return mx.array(found.reshape(size * size, -1))


@functools.cache
def _band_convolution(stride: int, rows: int, strips: int) -> Callable[..., mx.array]:
    """The convolution of a band as products with banded matrices, one for each channel and row of the kernel.

    A band of a channel is cut into strips, STRIP outputs wide; a row of a strip, times the matrix whose columns hold
    one row of the kernel, each shifted by ``stride`` from the last, gives what that row of the kernel adds to an output
    row. Half of the products are with zeros, and yet it is several times faster than a loop: it is all BLAS.
    """

    def reference(padded: mx.array, weight: mx.array, bias: mx.array, matrices: mx.array) -> mx.array:
        y = mx.conv2d(padded, weight, stride, groups=padded.shape[-1])
        return y[:, :rows, : strips * STRIP] + bias

    def convolve(padded: mx.array, weight: mx.array, bias: mx.array, matrices: mx.array) -> mx.array:
        batch, tall, wide, channels = padded.shape
        outputs, size = weight.shape[0], weight.shape[1]
        window = stride * STRIP + size - stride
        # (channels, batch, remainder of the row by the stride, row, strip, window), channels first for the products.
        line, image = wide * channels, tall * wide * channels
        shape = (channels, batch, stride, tall // stride, strips, window)
        strides = (1, image, line, stride * line, stride * STRIP * channels, channels)
        x = mx.contiguous(mx.as_strided(mx.contiguous(padded), shape, strides))
        matrices = matrices.reshape(channels, outputs // channels, size, 1, window, STRIP)

        def lines(i: int) -> mx.array:
            row = i // stride
            return x[:, None, :, i % stride, row : row + rows].reshape(channels, 1, batch, rows * strips, window)

        y = lines(0) @ matrices[:, :, 0]
        for i in range(1, size):
            y = mx.addmm(y, lines(i), matrices[:, :, i])
        y = y.reshape(outputs, -1) + bias[:, None]  # last: the first product would have it written out
        return _channels_last(y).reshape(batch, rows, strips * STRIP, outputs)

    return with_gradients_of(reference, convolve)


def _channels_last(x: mx.array) -> mx.array:
    """(channels, pixels) -> (pixels, channels), contiguous.

    By LINE channels at a time, whose pixels a cache can hold side by side: planes are often a power of two apart.
    """
    channels, pixels = x.shape
    if channels % LINE:
        return mx.contiguous(x.T)
    lines = mx.contiguous(x.reshape(-1, LINE, pixels).swapaxes(1, 2))
    return mx.contiguous(lines.swapaxes(0, 1)).reshape(pixels, channels)


def banded(weight: mx.array, stride: int) -> mx.array:
    """(outputs, k, k, 1) -> (outputs, k, window, STRIP): m[o, i, stride j + d, j] = weight[o, i, d], 0 elsewhere.

    A view of the kernel's rows, each with zeros around it: a column begins ``stride`` values before its left neighbour.
    """
    outputs, size = weight.shape[:2]
    window, before = stride * STRIP + size - stride, stride * (STRIP - 1)
    rows = mx.pad(weight.reshape(outputs, size, size), [(0, 0), (0, 0), (before, window - size)])
    length = before + window
    strides = (size * length, length, 1, -stride)
    return mx.as_strided(mx.contiguous(rows), (outputs, size, window, STRIP), strides, before)
