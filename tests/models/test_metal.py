"""What a Mac's GPU has to do, told by the graphs: how many kernels, in which types, and whether they are the fast ones.

tests/support/metal.py has the rules. Weights are zeros that nobody computes.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_fastvlm import FastVlmForConditionalGeneration, VisionConfig, make_cache
from mlx_fastvlm.cache.batch import BatchCache
from mlx_fastvlm.cache.policy import CachePolicy
from mlx_fastvlm.generation.decoding import prefill, step
from mlx_fastvlm.models import activations, depthwise, gpu, kernels, memory, vision
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.released import random_config
from tests.support.compilers import needs_compiler
from tests.support.graphs import operations
from tests.support.metal import FUSED, FUSED_SHORT, Graph, graph_of, is_compiled
from tests.support.models import wide_model

CACHED = 40
BITS = {"4 bits": {"group_size": 64, "bits": 4}, "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
KINDS = [(mx.bfloat16, None), (mx.float16, None), (mx.bfloat16, "4 bits"), (mx.float16, "4 bits")]
KINDS += [(mx.bfloat16, "mxfp4"), (mx.float16, "mxfp4")]
IDS = [f"{dtype}"[len("mlx.core.") :] + f" {bits or ''}" for dtype, bits in KINDS]


def released(dtype, bits=None, size="0.5b", layers=None):
    """A released model's shapes as a GPU gets them; the tower is never float16."""
    config = random_config(size)
    if layers is not None:
        config.text_config.num_hidden_layers = layers
    model = FastVlmForConditionalGeneration(config)
    for part in model.children().values():
        part_dtype = dtype if part is model.language_model or dtype == mx.float32 else mx.bfloat16
        part.update(tree_map(lambda x, dtype=part_dtype: mx.zeros(x.shape, dtype), part.parameters()))
    if bits:
        nn.quantize(model.language_model, **BITS[bits])
    return specialize(model.eval(), mx.gpu)


def filled(caches, dtype, kv):
    for i, cache in enumerate(caches):
        cache.keys, cache.values, cache.offset = kv[2 * i], kv[2 * i + 1], CACHED


def places(model, dtype, rows=1):
    text = model.config.text_config
    shape = (rows, text.num_key_value_heads, 256, text.head_dim)
    return [mx.zeros(shape, dtype) for _ in range(2 * text.num_hidden_layers)]


def decoding_step(model, dtype):
    """From a token to the next, greedily."""
    caches = make_cache(model)

    def decode(token, *kv):
        filled(caches, dtype, kv)
        logits = step(model, token, caches)
        return mx.argmax(logits, axis=-1), logits.max(axis=-1)

    return graph_of(model, decode, mx.array([5]), *places(model, dtype))


def batched_step(model, dtype, rows=3):
    batch = BatchCache(len(model.language_model.layers), rows, CachePolicy())
    text = model.config.text_config
    for row in range(rows):
        caches = make_cache(model)
        for cache in caches:
            cache.update_and_fetch(*[mx.zeros((1, text.num_key_value_heads, 5 + row, text.head_dim), dtype)] * 2)
        batch.join(caches)
    batch.begin()
    return graph_of(model, lambda tokens: step(model, tokens, batch.caches), mx.array([1, 2, 3]))


def reading(model, dtype):
    """An image's features and a question into the caches."""
    side = 4

    def read(features, ids):
        features = model.multi_modal_projector(features)
        return prefill(model, model.embed(ids, features, counted=True), make_cache(model), 2048)

    ids = mx.array([[1, *[-200] * side**2, 2, 7, 9]])
    return graph_of(model, read, mx.zeros((1, side**2, 3072), mx.bfloat16), ids)


def encoding(model, size):
    tower = model.vision_tower
    return graph_of(tower, lambda x: tower(x).last_hidden_state, mx.zeros((1, size, size, 3), tower.dtype))


@pytest.fixture(scope="module")
def tower():
    return encoding(released(mx.bfloat16, layers=1), 1024)


def test_an_image_takes_few_kernels(tower):
    """Copies that Metal makes on the way included, which the rules of test_cpu_ops.py leave out."""
    assert tower.counts["Convolution"] == 91
    assert tower.counts["copy"] == 5 + 6  # channels that are convolved twice, and the half of attention's wide heads
    assert len(tower.kernels) <= 331


def test_own_convolutions_take_fewer(monkeypatch):
    """Where they were proven: with bias, skip connection or GELU inside, and channels that are not doubled before."""
    monkeypatch.setattr(kernels, "backend", lambda: "metal")
    monkeypatch.setenv(depthwise.VARIABLE, "own")
    tower = encoding(released(mx.bfloat16, layers=1), 1024)
    assert tower.counts["copy"] == 6  # attention's
    assert len(tower.kernels) <= 281


@pytest.mark.parametrize(("queries", "copies"), [(8, 1), (9, 0)])
def test_attention_over_a_prompt_writes_its_results_as_they_are_read(queries, copies):
    """MLX's kernel for more than eight queries puts a token's heads one behind another; the other one does not."""
    q, kv = mx.zeros((1, 14, queries, 64)), mx.zeros((1, 2, 16, 64))

    def attend(q, kv):
        y = mx.fast.scaled_dot_product_attention(q, kv, kv, scale=1.0)
        return y.transpose(0, 2, 1, 3).reshape(1, queries, -1)

    assert Graph(attend, q, kv).counts["copy"] == copies


@pytest.mark.parametrize(("bits", "most"), [(None, 413), ("4 bits", 488)])
def test_a_token_takes_few_kernels(bits, most):
    graph = decoding_step(released(mx.bfloat16, bits), mx.bfloat16)
    assert graph.counts["copy"] == 0
    assert len(graph.kernels) <= most


def wide(graph, dtype, more_than):
    """Kernels that write this type, and more than so many values."""
    return [k.name for k in graph.kernels for x in k.outputs if x.dtype == dtype and x.size > more_than]


@pytest.mark.parametrize(("dtype", "bits"), KINDS, ids=IDS)
@pytest.mark.parametrize("graph", [decoding_step, batched_step, reading])
def test_a_decoder_in_16_bits_writes_no_float32(graph, dtype, bits):
    model = released(dtype, bits, layers=2)
    made = graph(model, dtype)
    assert wide(made, dtype, 0)  # it computes something
    assert wide(made, mx.float32, 0) == []
    other = mx.float16 if dtype == mx.bfloat16 else mx.bfloat16
    mixed = wide(made, other, 0)  # image features, and what mxfp4 unpacks a token's embedding to
    assert len([name for name in mixed if name != "AsType"]) <= (8 if graph is reading and dtype == mx.float16 else 1)


def test_a_tower_in_bfloat16_writes_no_float32(tower):
    assert wide(tower, mx.float32, 0) == []
    sums = [k for k in tower.kernels if k.name == "Reduce" and k.inputs[0].dtype == mx.bfloat16]
    assert sums == []  # Metal would add up in bfloat16


@pytest.mark.parametrize("size", ["0.5b", "1.5b", "7b"])
def test_attention_is_fused(size):
    """In the tower for every number of tokens; in the decoder for prompts and for steps."""
    model = released(mx.bfloat16, size=size, layers=1)
    graphs = [encoding(model, 64 * side) for side in (1, 2, 4)]
    graphs += [decoding_step(model, mx.bfloat16), reading(model, mx.bfloat16), batched_step(model, mx.bfloat16)]
    for graph, blocks in zip(graphs, (6, 6, 6, 1, 1, 1)):
        assert graph.counts["Softmax"] == 0
        assert sum(count for name, count in graph.counts.items() if "Softmax" in name) == blocks


def test_convolutions_reach_the_fast_kernel(tower):
    """Metal's for depthwise ones: one output a group, at most 7 wide, stride 1 or 2, channels in sixteens (MLX 0.32,
    mlx/backend/metal/conv.cpp). All but the stem's first, which has three channels, are depthwise.
    """
    first, *depthwise = [k for k in tower.kernels if k.name == "Convolution"]
    assert first.inputs[0].shape[-1] == 3
    for kernel in depthwise:
        x, weight = kernel.inputs
        assert weight.shape[0] == x.shape[-1] == kernel.outputs[0].shape[-1]
        assert weight.shape[3] == 1
        assert weight.shape[1] <= 7
        assert x.shape[1] // kernel.outputs[0].shape[1] in (1, 2)
        assert x.shape[-1] % 16 == 0


def test_the_rules_see_what_is_not_fused():
    """Heads of 32 are several kernels and a copy, an operand that lies otherwise is copied, an upcast is written."""
    plain = vision.Attention(64, 32)
    graph = graph_of(plain, plain, mx.zeros((1, 4, 4, 64)))
    assert 32 not in FUSED | FUSED_SHORT
    assert graph.counts == {"Matmul": 3, "AddMM": 1, "Multiply": 1, "Softmax": 1, "copy": 1}
    assert Graph(lambda x: x[:, ::2] @ x[:4], mx.zeros((8, 8))).counts == {"copy": 1, "Matmul": 1}
    assert Graph(lambda x: x.T @ x, mx.zeros((8, 8))).counts == {"Matmul": 1}
    upcast = Graph(lambda x: x.astype(mx.float32) + 1, mx.zeros((4,), mx.float16))
    assert wide(upcast, mx.float32, 0) == ["AsType", "Add"]


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_the_memory_of_an_image_is_within_the_estimate(size, monkeypatch):
    """60 bytes a pixel are needed at a time. What Metal's command buffers hold ahead of that is no more than loading
    asks for, or 30% more; that was measured where MLX holds more ahead (benchmarks/image_memory.py).
    """
    graph = encoding(released(mx.bfloat16, layers=1), size)
    assert graph.peak() == 60 * size**2
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert 0.5 <= graph.peak(ahead=10) / memory.tower_memory(size, mx.bfloat16) <= 1.3


# Exactness


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (2, 4, 4)])
@pytest.mark.parametrize("channels", [32, 128])
def test_attention_in_wider_heads_is_the_same(channels, shape):
    mx.random.seed(0)
    layer, x = vision.Attention(channels, 32), mx.random.normal((*shape, channels)) * 3
    weighted = mx.random.normal(x.shape)

    def results():
        gradient = mx.grad(lambda x: (layer(x) * weighted).sum())(x)
        return layer(x), gradient

    expected = results()
    specialize(layer, mx.gpu)
    for got, plain in zip(results(), expected):
        assert mx.abs(got - plain).max() <= 1e-6 * mx.abs(plain).max()


def test_attention_in_wider_heads_holds_no_scores(monkeypatch):
    """Every head reaches the kernel 64 wide, keys and values without a copy of their own."""
    seen = []
    monkeypatch.setattr(
        mx.fast, "scaled_dot_product_attention", lambda q, k, v, scale: seen.append((q, k, v, scale)) or q
    )
    specialize(vision.Attention(128, 32), mx.gpu)(mx.zeros((1, 4, 4, 128)))
    ((q, k, v, scale),) = seen
    assert {x.shape for x in (q, k, v)} == {(1, 4, 16, 64)}
    assert scale == 32**-0.5


@pytest.fixture
def not_compiled():
    """The same values, without the seconds of a C++ compiler that a CPU would need."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_round_once(name, not_compiled):
    """Within half a step of bfloat16, everywhere: MLX's own, whose intermediates are bfloat16, are not."""
    x = mx.array(np.linspace(-6, 6, 4001)).astype(mx.bfloat16)
    exact = getattr(activations, name)(x.astype(mx.float32))
    got = getattr(gpu, name)(x)
    assert got.dtype == mx.bfloat16
    step = mx.maximum(mx.abs(exact), 1e-3) * 2**-8
    assert (mx.abs(got.astype(mx.float32) - exact) <= step).all()
    own = getattr(nn, {"gelu_tanh": "gelu_approx"}.get(name, name))(x).astype(mx.float32)
    assert (mx.abs(own - exact) > step).any()


@needs_compiler
@pytest.mark.parametrize("name", [n for n, value in vars(gpu).items() if is_compiled(value) and n != "gelu_tanh"])
def test_what_is_fused_is_one_kernel(name):
    """MLX fuses so many operations in a row at most, and none behind an array that is used twice. (GELU by tanh, which
    no released model has, is three.)
    """
    function = getattr(gpu, name)
    count = {"two_sums": 3, "swiglu": 2, "gelu_of_sum": 2, "gated": 2, "gelu_of_gated_sum": 3}.get(name, 1)
    arrays = [mx.zeros((8,), mx.bfloat16)] * count
    outputs = function(*arrays)
    found = operations(*([outputs] if isinstance(outputs, mx.array) else outputs))
    kernels = [name for name in found if name not in ("Broadcast", "Full")]
    assert len(kernels) == 1
    assert kernels[0].startswith("Compiled")


@pytest.mark.parametrize("side", [4, 6])
def test_means_of_channels(side):
    mx.random.seed(0)
    x = mx.random.normal((2, side, side, 32)) + 3
    layer = vision.SqueezeExcite(32, 2)
    expected = layer.means(x)
    assert mx.allclose(specialize(layer, mx.gpu).means(x), expected, rtol=1e-6)
    assert mx.allclose(layer.means(x, mx.arange(32) * 1.0), expected + mx.arange(32), rtol=1e-6)
    half = layer.means(x.astype(mx.bfloat16)).astype(mx.float32)
    assert (mx.abs(half - expected) <= mx.abs(expected) * 2**-7).all()


def test_a_step_asks_for_no_device(monkeypatch):
    """The forms are chosen when a model is built; a decoding step's 400 calls take what they find."""
    model, _ = wide_model()
    specialize(model, mx.gpu)
    try:
        caches = make_cache(model)
        model(mx.array([[1, 2, 3]]), past_key_values=caches)
        asked = []
        monkeypatch.setattr(mx, "default_device", lambda: asked.append(1))
        step(model, mx.array([5]), caches)
        assert asked == []
    finally:
        monkeypatch.undo()
        specialize(model)


def test_the_tower_as_released_is_what_is_counted():
    assert VisionConfig().head_dim == 32
    assert [VisionConfig().layers, VisionConfig().embed_dims] == [[2, 12, 24, 4, 2], [96, 192, 384, 768, 1536]]
