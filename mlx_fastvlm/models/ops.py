"""The operations that MLX's CPU backend is slow at, and a faster form of each for it.

On a GPU each of these is MLX's own operation, and nothing here runs. On the CPU, in float32, a picture spends most of
its time in four things that are easily avoided (docs/performance.md has the figures): depthwise convolutions, which
take a naive loop; erf, exp and sigmoid, which take a library call for each element; large temporary arrays, whose
pages the operating system clears at each use; and waiting for one core, while others have nothing to do (``streams.py``
shares the work out).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .streams import free_cores, spread

# Work is cut into pieces of about this many values, 2 MiB, which a processor's caches hold.
PIECE = 2**19
# Columns that one banded matrix computes: few enough that little of it is zero, enough for a matrix product.
STRIP = 16
# Tokens from which on a product is bound by arithmetic: cores then share the tokens, for fewer the matrix.
MANY = 64
# Tokens up to which small products in a row are faster than one.
FEW = 4


def slow_device(x: mx.array) -> bool:
    """Whether ``x`` is computed where the forms of this file are faster than MLX's own."""
    return mx.default_device().type == mx.DeviceType.cpu and x.dtype == mx.float32


def with_gradients_of(plain: Callable[..., mx.array], fast: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``fast``, differentiated as ``plain``, which keeps less for the gradients than ``fast``'s many steps would."""
    function = mx.custom_function(fast)

    @function.vjp
    def _(primals, cotangent, output):
        inputs = list(primals) if isinstance(primals, (tuple, list)) else [primals]
        gradients = mx.vjp(plain, inputs, [cotangent])[1]
        return gradients if len(inputs) > 1 else gradients[0]

    return function  # type: ignore[return-value]  # its stub promises an object


# Activations

# Both tails are a 32nd power, by squaring five times, of something so flat that a short polynomial will do. MLX fuses
# at most eleven operations in a row, so each comes in two pieces that it fuses whole: with a C++ compiler at hand one
# loop over the array each, without one a loop for each operation. Nothing overflows.


def _to_the_32(x: mx.array) -> mx.array:
    for _ in range(5):
        x = x * x
    return x


@mx.compile
def _root_of_normal_tail(x: mx.array) -> mx.array:
    # (2 Phi(-|x|))^(-1/32) as a polynomial of |x|, fitted for the smallest maximum error of GELU: 1.5e-7.
    a = mx.abs(x)
    p = ((1.98655611e-5 * a - 8.00294784e-5) * a + 1.39052059e-3) * a + 1.02583486e-2
    return (p * a + 2.49334962e-2) * a + 1.0


@mx.compile
def _gelu_from_root(x: mx.array, root: mx.array) -> mx.array:
    a = mx.abs(x)
    return 0.5 * (x + a - a * _to_the_32(1.0 / root))  # max(x, 0) - |x| Phi(-|x|)


_fast_gelu = with_gradients_of(nn.gelu, lambda x: _gelu_from_root(x, _root_of_normal_tail(x)))


def gelu(x: mx.array) -> mx.array:
    """Exact GELU, x Phi(x) (arXiv 1606.08415); on the CPU within 1e-6 of it. Any shape, float."""
    return _fast_gelu(x) if slow_device(x) else nn.gelu(x)


@mx.compile
def _root_of_exp(x: mx.array) -> mx.array:
    # exp(|x| / 32) as a polynomial of |x|, fitted on [0, 20]: exp(-|x|) is within 3e-6, float32's own error 32 times.
    a = mx.abs(x)
    p = ((3.26030007e-10 * a + 3.82219084e-8) * a + 5.09881989e-6) * a + 4.88238627e-4
    return (p * a + 3.12500435e-2) * a + 1.0


@mx.compile
def _exp_from_root(root: mx.array) -> mx.array:
    return _to_the_32(1.0 / root)


@mx.compile
def _silu_from_root(x: mx.array, root: mx.array) -> mx.array:
    a, t = mx.abs(x), _to_the_32(1.0 / root)
    return 0.5 * ((x + a) + (x - a) * t) / (1.0 + t)  # (max(x, 0) + min(x, 0) exp(-|x|)) / (1 + exp(-|x|))


_fast_silu = with_gradients_of(nn.silu, lambda x: _silu_from_root(x, _root_of_exp(x)))


def silu(x: mx.array) -> mx.array:
    """SiLU, x sigmoid(x); on the CPU within 3e-6 of it. Any shape, float."""
    return _fast_silu(x) if slow_device(x) else nn.silu(x)


# Sums


def add_two(x: mx.array, y: mx.array, z: mx.array) -> tuple[mx.array, mx.array]:
    """``x + y`` and ``x + y + z``, shapes that broadcast: on a GPU in one kernel, which reads x once."""
    return _add_two(x, y, z) if slow_device(x) else _compiled_add_two(x, y, z)


def _add_two(x: mx.array, y: mx.array, z: mx.array) -> tuple[mx.array, mx.array]:
    xy = x + y
    return xy, xy + z


_compiled_add_two = mx.compile(_add_two)


def add_matmul(x: mx.array, y: mx.array, layer: nn.Linear) -> mx.array:
    """``x`` + the layer's matrix times ``y``, without its bias; x (..., outputs), y (..., inputs). One product."""
    if isinstance(layer, nn.QuantizedLinear):
        packed = layer.weight, layer.scales, layer.get("biases"), True, layer.group_size, layer.bits, layer.mode
        return x + mx.quantized_matmul(y, *packed)
    # Rows as one matrix: over a batch of them it would be a product each.
    return mx.addmm(x.flatten(0, -2), y.flatten(0, -2), layer.weight.T).reshape(x.shape)


# What each token has to itself

# Kinds of layer whose matrix can be read in parts; subclasses and wrappers may do more than multiply.
MATRICES = (nn.Linear, nn.Embedding, nn.QuantizedLinear, nn.QuantizedEmbedding)


def tokenwise(x: mx.array, apply: Callable[[mx.array], mx.array]) -> mx.array:
    """``apply(x)``, where each token (or pixel) is computed on its own: on the CPU many of them on all cores.

    Args:
        x: (..., inputs).
        apply: (tokens, inputs) -> (tokens, outputs), and the same for more leading axes.
    """
    tokens, cores = x.size // x.shape[-1], free_cores()
    if not slow_device(x) or cores == 1 or tokens < MANY:
        return apply(x)
    done = spread(x.reshape(tokens, -1), _shares(tokens, cores), lambda x, share: apply(x[share]))
    return mx.concatenate(done).reshape(*x.shape[:-1], -1)


def linear(x: mx.array, layer: nn.Linear | nn.Embedding) -> mx.array:
    """A linear layer, or an embedding as one: (..., inputs) -> (..., outputs).

    A few tokens times a large matrix are bound by memory. There, on the CPU, each core reads a part of the matrix.
    """
    tokens = x.size // x.shape[-1]
    large = type(layer) in MATRICES and layer.weight.size >= PIECE // 4
    if not slow_device(x) or not large or tokens >= MANY:
        return tokenwise(x, layer.as_linear if isinstance(layer, (nn.Embedding, nn.QuantizedEmbedding)) else layer)
    outputs = layer.weight.shape[0]
    shares = _shares(outputs, free_cores())
    done = spread(x.reshape(tokens, -1), shares, lambda x, share: _some_outputs(x, layer, share))
    y = mx.concatenate(done, axis=-1).reshape(*x.shape[:-1], outputs)
    return y + layer.bias if "bias" in layer else y


def _some_outputs(x: mx.array, layer: nn.Linear | nn.Embedding, share: slice) -> mx.array:
    """(tokens, inputs) -> (tokens, outputs of that share), without a bias."""
    weight, tokens = layer.weight[share], len(x)
    if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        biases = layer.get("biases")
        packed = weight, layer.scales[share], None if biases is None else biases[share]
        return mx.quantized_matmul(x, *packed, True, layer.group_size, layer.bits, layer.mode)
    # OpenBLAS multiplies a small matrix as it lies, a larger one only once it has copied it in another order.
    blocks = _blocks(*weight.shape, tokens) if tokens <= FEW else 1
    y = x[None] @ weight.reshape(blocks, -1, weight.shape[1]).swapaxes(-1, -2)
    return y.swapaxes(0, 1).reshape(tokens, -1)


@functools.cache
def _blocks(outputs: int, inputs: int, tokens: int) -> int:
    """Into how many equal blocks of at least eight rows a matrix is cut, so that one is a product of PIECE or less."""
    least = -(-tokens * outputs * inputs // PIECE)
    return next((n for n in range(least, outputs // 8 + 1) if outputs % n == 0), 1)


def _shares(total: int, cores: int) -> list[slice]:
    """``total`` things, as equally as can be."""
    each = -(-total // cores)
    return [slice(first, first + each) for first in range(0, total, each)]


# Attention


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None = None) -> mx.array:
    """Scaled dot-product attention.

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, heads or a divisor of it, keys, head_dim).
        mask: bool, broadcast to (batch, 1, queries, keys), True where a query may look; or "causal"; or None.

    Returns:
        The shape of ``q``.
    """

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    if not slow_device(q) or q.shape[2] == 1:
        return plain(q, k, v)
    return with_gradients_of(plain, lambda q, k, v: _attention_by_heads(q, k, v, scale, mask))(q, k, v)


def _attention_by_heads(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    (batch, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
    # Query heads that share a key head: (batch, key heads, queries of all of them, head_dim).
    shared = heads // kv_heads
    q = (q * scale).reshape(batch, kv_heads, shared * queries, -1)
    if isinstance(mask, str):
        mask = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
    # Some heads at a time: their scores are the tower's largest arrays.
    group = min(max(1, 2 * PIECE // (batch * shared * queries * keys)), -(-kv_heads // free_cores()))

    def some_heads(q: mx.array, part: slice) -> mx.array:
        scores = q[:, part] @ k[:, part].swapaxes(-1, -2)
        if mask is not None:
            scores = mx.where(mask, scores.reshape(batch, -1, queries, keys), -1e9).reshape(scores.shape)
        weights = _exp_from_root(_root_of_exp(scores - scores.max(axis=-1, keepdims=True)))
        return (weights @ v[:, part]) / weights.sum(axis=-1, keepdims=True)

    done = spread(q, [slice(first, first + group) for first in range(0, kv_heads, group)], some_heads)
    return mx.concatenate(done, axis=1).reshape(batch, heads, queries, -1)


# Depthwise convolution


def depthwise_conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    stride: int = 1,
    then: Callable[[mx.array, slice], mx.array] = lambda y, rows: y,
) -> mx.array:
    """Convolve each channel on its own, pad so that sizes stay (stride 1) or halve (stride 2), and apply ``then``.

    Args:
        x: (batch, height, width, in_channels), float.
        weight: (out_channels, k, k, 1), k odd, ``out_channels`` one or two times ``in_channels``; outputs 2c and 2c + 1
            then see input c, as in a PyTorch convolution with ``groups=in_channels``.
        bias: (out_channels,).
        then: what follows for each pixel on its own: (batch, rows, width, out_channels), and which rows of the output
            these are -> (batch, rows, width, any).

    Returns:
        (batch, height / stride, width / stride, channels of ``then``).
    """
    if slow_device(x):
        return _in_bands(x, weight, bias, stride, then)
    channels, padding = x.shape[-1], weight.shape[1] // 2
    per_input = weight.shape[0] // channels
    # Metal has a fast kernel for exactly one output per group: run one such convolution for each of the two.
    outputs = [mx.conv2d(x, weight[i::per_input], stride, padding, groups=channels) for i in range(per_input)]
    y = outputs[0] if per_input == 1 else mx.stack(outputs, axis=-1).flatten(-2)
    return then(y if bias is None else y + bias, slice(None))


def _in_bands(x, weight, bias, stride, then) -> mx.array:
    """:func:`depthwise_conv2d` on the CPU: a band of rows at a time, each through :func:`_band_convolution`."""
    batch, height, width, _ = x.shape
    size = weight.shape[1]
    out_height, out_width = -(-height // stride), -(-width // stride)
    bands = -(-batch * out_height * out_width * weight.shape[0] // PIECE)
    bands = min(out_height, -(-bands // free_cores()) * free_cores())  # so that each core has as many
    rows = -(-out_height // bands)
    strips = -(-out_width // STRIP)
    convolve = _band_convolution(stride, rows, strips)
    # What the strips and rows of the last band read beyond the picture is zeros, and what they compute from it is cut.
    tall, wide = stride * (rows + (size - 1) // stride), stride * STRIP * strips + size - stride
    matrices = mx.stop_gradient(banded(weight, stride))  # the gradients take another way

    def band(x: mx.array, top: int) -> mx.array:
        above, left = size // 2, size // 2
        first = top * stride - above
        lines = x[:, max(first, 0) : first + tall]
        missing = max(-first, 0)
        padding = [(0, 0), (missing, tall - missing - lines.shape[1]), (left, wide - left - width), (0, 0)]
        y = convolve(mx.pad(lines, padding), weight, mx.zeros(weight.shape[0]) if bias is None else bias, matrices)
        return then(y[:, : out_height - top, :out_width], slice(top, top + rows))

    done = spread(x, range(0, out_height, rows), band)
    return done[0] if len(done) == 1 else mx.concatenate(done, axis=1)


@functools.cache
def _band_convolution(stride: int, rows: int, strips: int):
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
        y = mx.broadcast_to(
            bias.reshape(channels, -1, 1, 1, 1), (channels, outputs // channels, batch, rows * strips, STRIP)
        )
        for i in range(size):
            row = i // stride
            lines = x[:, None, :, i % stride, row : row + rows].reshape(channels, 1, batch, rows * strips, window)
            y = mx.addmm(y, lines, matrices[:, :, i])
        return y.reshape(outputs, batch, rows, strips * STRIP).transpose(1, 2, 3, 0)

    return with_gradients_of(reference, convolve)


def banded(weight: mx.array, stride: int) -> mx.array:
    """(outputs, k, k, 1) -> (outputs, k, window, STRIP): m[o, i, stride j + d, j] = weight[o, i, d], 0 elsewhere."""
    outputs, size = weight.shape[:2]
    window = stride * STRIP + size - stride
    # The transposed matrix, row after row, is the kernel's row and zeros with a period of window + stride.
    period = mx.pad(weight.reshape(outputs, size, 1, size), [(0, 0)] * 3 + [(0, window + stride - size)])
    rows = mx.broadcast_to(period, (outputs, size, STRIP, window + stride)).reshape(outputs, size, -1)
    return rows[..., : STRIP * window].reshape(outputs, size, STRIP, window).swapaxes(-1, -2)
