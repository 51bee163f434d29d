"""The CPU's forms of slow operations against MLX's own, and how much work an image is on a GPU."""

import copy
import math
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastViTHD, VisionConfig
from mlx_fastvlm.models import cpu_ops, streams
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.vision import Stem
from tests.support.compilers import needs_compiler
from tests.support.graphs import operations


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def plain_convolution(x, weight, bias, stride):
    y = mx.conv2d(x, weight, stride, weight.shape[1] // 2, groups=x.shape[-1])
    return y if bias is None else y + bias


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "per_input", "size", "stride"),
    [
        (1, 16, 16, 8, 1, 7, 1),
        (2, 20, 37, 8, 1, 3, 1),  # a width that strips don't divide
        (1, 64, 64, 16, 2, 7, 2),
        (2, 9, 9, 4, 2, 3, 1),
        (1, 17, 23, 4, 1, 3, 2),  # odd sides at stride 2
        (3, 128, 130, 32, 1, 7, 2),  # several bands
        (1, 1, 1, 4, 1, 7, 1),
        (1, 5, 2, 4, 1, 7, 2),
        (3, 16, 16, 4, 2, 7, 2),  # few pixels, at once
        (2, 8, 7, 4, 1, 3, 1),
    ],
)
def test_depthwise_convolution_and_its_gradients(batch, height, width, channels, per_input, size, stride, monkeypatch):
    monkeypatch.setattr(cpu_ops, "PIECE", 2**12)  # bands, without the size that makes them worth their while
    mx.random.seed(0)
    x = mx.random.normal((batch, height, width, channels))
    weight = mx.random.normal((channels * per_input, size, size, 1))
    bias = mx.random.normal((channels * per_input,))

    def ours(x, weight, bias):
        return cpu_ops.depthwise_conv2d(x, weight, bias, stride)

    def plain(x, weight, bias):
        return plain_convolution(x, weight, bias, stride)

    assert mx.allclose(ours(x, weight, bias), plain(x, weight, bias), atol=3e-5)
    assert mx.allclose(ours(x, weight, None), plain(x, weight, None), atol=3e-5)
    weighted = mx.random.normal(plain(x, weight, bias).shape)
    gradients = [
        mx.grad(lambda *a, f=f: (f(*a) * weighted).sum(), argnums=(0, 1, 2))(x, weight, bias) for f in (ours, plain)
    ]
    for got, expected in zip(*gradients):
        assert mx.abs(got - expected).max() <= 1e-5 * mx.abs(expected).max()


def test_what_follows_a_convolution_sees_a_band_at_a_time(monkeypatch):
    monkeypatch.setattr(cpu_ops, "PIECE", 2**9)
    x, weight = mx.random.normal((1, 40, 16, 8)), mx.random.normal((8, 7, 7, 1))
    seen = []

    def double(y):
        seen.append(y.shape)
        return y * 2

    y = cpu_ops.depthwise_conv2d(x, weight, None, 1, double)
    assert seen == [(1, 4, 16, 8)] * 10
    assert mx.allclose(y, plain_convolution(x, weight, None, 1) * 2, atol=3e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (63, 65), (4, 4)])
def test_a_stem_in_bands_and_its_gradients(height, width, monkeypatch):
    """The rows that two bands share are computed for each, and what lies beyond the image is zeros after GELU too."""
    monkeypatch.setattr(cpu_ops, "PIECE", 2**10)
    mx.random.seed(3)
    plain = Stem(16)
    plain.update(random_like(plain.parameters()))
    banded = specialize(copy.deepcopy(plain), mx.cpu)
    x = mx.random.uniform(shape=(2, height, width, 3))
    assert mx.abs(banded(x) - plain(x)).max() <= 1e-5
    of_image, of_weights = (
        [mx.grad(lambda x, s=stem: s(x).square().sum())(x) for stem in (plain, banded)],
        [nn.value_and_grad(stem, lambda s=stem: s(x).square().sum())()[1] for stem in (plain, banded)],
    )
    for expected, got in [tuple(of_image), *zip(*([y for _, y in tree_flatten(g)] for g in of_weights))]:
        assert mx.abs(got - expected).max() <= 1e-4 * mx.abs(expected).max()


def test_activations_are_exact_and_their_gradients_finite():
    values = np.concatenate([np.linspace(-12, 12, 20001), [-6e4, -100, 100, 6e4]]).astype(np.float32)
    x = mx.array(values)
    gelu = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in values.astype(float)]
    silu = [v / (1 + math.exp(-v)) if v > -700 else 0.0 for v in values.astype(float)]
    assert np.abs(np.array(cpu_ops.gelu(x)) - gelu).max() <= 1e-6
    assert np.abs(np.array(cpu_ops.silu(x)) - silu).max() <= 3e-6
    for ours, plain in ((cpu_ops.gelu, nn.gelu), (cpu_ops.silu, nn.silu)):
        got, expected = (mx.grad(lambda x, f=f: f(x).sum())(x) for f in (ours, plain))
        assert mx.abs(got - expected).max() <= 1e-5


@pytest.mark.parametrize("mask", [None, "causal", "padding"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_attention(mask, heads, kv_heads, monkeypatch):
    monkeypatch.setattr(cpu_ops, "PIECE", 2**10)  # heads in groups
    mx.random.seed(1)
    q = mx.random.normal((2, heads, 24, 16)) * 3
    k, v = (mx.random.normal((2, kv_heads, 40, 16)) * 3 for _ in range(2))
    if mask == "padding":
        mask = mx.arange(40)[None, None, None] >= mx.array([3, 0])[:, None, None, None]
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)
    assert mx.abs(cpu_ops.attention(q, k, v, 0.25, mask) - expected).max() <= 3e-5


def layers(inputs, outputs):
    head, embedding = nn.Linear(inputs, outputs), nn.Embedding(outputs, inputs)
    return {
        "bias": head,
        "no bias": nn.Linear(inputs, outputs, bias=False),
        "embedding": embedding,
        "4 bits": head.to_quantized(32, 4),
        "8-bit embedding": embedding.to_quantized(32, 8),
        "mxfp4": nn.Linear(inputs, outputs, bias=False).to_quantized(32, 4, mode="mxfp4"),
    }


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("kind", layers(32, 32))
@pytest.mark.parametrize("outputs", [640, 635, 7])  # shared equally, unequally, and too small to be
def test_a_linear_layer_is_what_it_would_be_in_one_piece(kind, outputs, cores, monkeypatch):
    monkeypatch.setattr(streams, "_count", lambda: cores)
    monkeypatch.setattr(cpu_ops, "PIECE", 4096)
    monkeypatch.setattr(cpu_ops, "SMALL", 4096)
    cpu_ops._blocks.cache_clear()
    layer = layers(64, outputs)[kind]
    shared = specialize(copy.copy(layer))
    call = shared.as_linear if "embedding" in kind else shared
    for shape in ((64,), (1, 1, 64), (3, 64), (2, 5, 64), (100, 64)):
        x = mx.random.normal(shape)
        expected = layer.as_linear(x) if "embedding" in kind else layer(x)
        assert call(x).shape == expected.shape
        assert mx.allclose(call(x), expected, atol=1e-4)
        twice = cpu_ops.tokenwise(x, lambda x: call(x) * 2)  # as in a perceptron
        assert mx.allclose(twice, expected * 2, atol=2e-4)
    cpu_ops._blocks.cache_clear()


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bias", "no bias", "4 bits", "mxfp4"])
def test_a_gated_product_is_what_it_would_be_in_one_piece(kind, cores, monkeypatch):
    """Few tokens' is shared out once, not once for each of the two matrices."""
    monkeypatch.setattr(streams, "_count", lambda: cores)
    monkeypatch.setattr(cpu_ops, "PIECE", 512)
    monkeypatch.setattr(cpu_ops, "SMALL", 4096)
    cpu_ops._blocks.cache_clear()
    spread, times = streams.spread, []
    monkeypatch.setattr(cpu_ops, "spread", lambda *all: times.append(1) or spread(*all))
    gate, up = (layers(64, 635)[kind] for _ in range(2))
    shared = specialize(copy.copy(gate)), specialize(copy.copy(up))
    for shape, few in (((1, 1, 64), True), ((3, 64), True), ((2, 5, 64), True), ((100, 64), False)):
        x = mx.random.normal(shape)
        expected = nn.silu(gate(x)) * up(x)
        times.clear()
        assert mx.allclose(cpu_ops.swiglu(x, *shared), expected, atol=1e-4)
        assert (len(times) == 1) == (few and "bias" not in gate), times
        ours = mx.grad(lambda x: cpu_ops.swiglu(x, *shared).square().sum())(x)
        theirs = mx.grad(lambda x: (nn.silu(gate(x)) * up(x)).square().sum())(x)
        assert mx.abs(ours - theirs).max() <= 1e-4 * mx.abs(theirs).max()
    cpu_ops._blocks.cache_clear()


@pytest.mark.parametrize("tokens", [3, 150])
def test_gradients_of_what_is_shared_out(tokens, monkeypatch):
    monkeypatch.setattr(streams, "_count", lambda: 2)
    monkeypatch.setattr(cpu_ops, "PIECE", 4096)
    layer, x = specialize(nn.Linear(64, 96)), mx.random.normal((tokens, 64))

    def shared(weight, bias, x):
        layer.weight, layer.bias = weight, bias
        return layer(x).square().sum()

    def plain(weight, bias, x):
        return (x @ weight.T + bias).square().sum()

    inputs = (layer.weight, layer.bias, x)
    for ours, expected in zip(mx.grad(shared, (0, 1, 2))(*inputs), mx.grad(plain, (0, 1, 2))(*inputs)):
        assert mx.abs(ours - expected).max() <= 1e-5 * mx.abs(expected).max()


@pytest.mark.parametrize("tokens", [3, 16, 150])
def test_gradients_through_packed_matrices(tokens, monkeypatch):
    """As adapters on a quantized model need them, whether the matrix is unpacked before or not."""
    monkeypatch.setattr(streams, "_count", lambda: 2)
    monkeypatch.setattr(cpu_ops, "PIECE", 4096)
    layer, x = nn.Linear(64, 96).to_quantized(32, 4), mx.random.normal((tokens, 64))
    weight = mx.dequantize(layer.weight, layer.scales, layer.biases, 32, 4)
    shared = specialize(layer)
    ours = mx.grad(lambda x: shared(x).square().sum())(x)
    expected = mx.grad(lambda x: (x @ weight.T + layer.bias).square().sum())(x)
    assert mx.abs(ours - expected).max() <= 1e-5 * mx.abs(expected).max()


def test_blocks_of_a_matrix_are_equal_and_small():
    for outputs, inputs in ((4864, 896), (75968, 896), (448, 4864), (9472, 3584), (997, 4096)):
        blocks = cpu_ops._blocks(outputs, inputs, 1)
        assert outputs % blocks == 0
        assert blocks == 1 or outputs // blocks * inputs <= cpu_ops.SMALL
    assert cpu_ops._blocks(997, 4096, 1) == 1  # a prime: rows one at a time would be slower than the whole


def test_all_forms_of_the_tower_agree():
    config = VisionConfig(layers=[1, 1, 1, 1, 1], embed_dims=[8, 16, 32, 32, 64])
    tower = FastViTHD(config)
    mx.random.seed(2)
    tower.update(random_like(tower.parameters()))
    pixels = mx.random.uniform(shape=(2, 128, 192, 3))
    plain = tower(pixels).last_hidden_state
    for device in (mx.cpu, mx.gpu):
        specialize(tower, device)
        assert mx.abs(tower(pixels).last_hidden_state - plain).max() <= 1e-4 * plain.std()


def random_like(tree):
    if isinstance(tree, dict):
        return {name: random_like(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [random_like(value) for value in tree]
    return mx.random.normal(tree.shape) * (0.2 if tree.ndim > 1 else 0.1)


@needs_compiler
def test_kernels_of_an_image_on_a_gpu(monkeypatch):
    """The exported graph of the tower as a GPU gets it. What only looks at an array differently is no kernel; the
    operations that are one kernel on a GPU, but several on the CPU that builds the graph here, are replaced by one.
    test_metal.py counts copies too.
    """
    monkeypatch.setattr(mx.fast, "layer_norm", lambda x, *_: mx.sort(x))
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", lambda q, k, v, **_: mx.sort(q))
    tower = specialize(FastViTHD(VisionConfig()), mx.gpu)
    mx.eval(tower.parameters())
    found = Counter(operations(tower(mx.zeros((1, 1024, 1024, 3))).last_hidden_state))
    views = {"Reshape", "Transpose", "Slice", "Broadcast", "Flatten", "Unflatten", "Squeeze", "ExpandDims", "Split"}
    views |= {"AsStrided"}
    kernels_per_image = sum(count for name, count in found.items() if name not in views)
    assert found["Convolution"] == 91
    assert kernels_per_image <= 327
