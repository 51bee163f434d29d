"""The roofline counts what a graph does: arithmetic, bytes, and loops that are one kernel."""

import mlx.core as mx
import pytest

from tests.support.scripts import load_script

ROOFLINE = load_script("benchmarks/roofline.py")


def costs(function, *arguments):
    return [(one.kind, one.flops, one.bytes) for one in ROOFLINE.operations(function, *arguments)]


def test_products_and_convolutions():
    x, weight = mx.zeros((8, 16), mx.bfloat16), mx.zeros((16, 32), mx.bfloat16)
    assert costs(lambda x: x @ weight, x) == [("product", 2 * 8 * 16 * 32, 2 * (8 * 16 + 16 * 32 + 8 * 32))]
    image, kernel = mx.zeros((1, 8, 8, 4)), mx.zeros((4, 3, 3, 1))
    convolved = costs(lambda x: mx.conv2d(x, kernel, padding=1, groups=4), image)
    assert convolved == [("depthwise", 2 * 256 * 9, 4 * (256 + 36 + 256))]
    packed = mx.quantize(mx.ones((64, 128)), 64, 4)
    mx.eval(packed)
    (one,) = costs(lambda x: mx.quantized_matmul(x, *packed, group_size=64, bits=4), mx.zeros((2, 128)))
    assert one[:2] == ("product", 2 * 2 * 128 * 64)


def test_loops_that_feed_one_another_are_one_kernel():
    x, y = mx.zeros((4, 8)), mx.zeros((4, 8))
    (one,) = ROOFLINE.operations(lambda x, y: mx.exp(x * y) + y.reshape(32).reshape(4, 8), x, y)
    assert (one.kind, one.bytes) == ("loop", 3 * 4 * 32)
    kinds = [one.kind for one in ROOFLINE.operations(lambda x: mx.exp(mx.exp(x) @ mx.ones((8, 8))), x)]
    assert kinds == ["loop", "product", "loop"]
    twice = ROOFLINE.operations(lambda x: (lambda z: z @ mx.ones((8, 8)) + mx.sin(z))(x * y), x)  # z is written out
    assert [one.kind for one in twice] == ["loop", "product", "loop"]


def test_the_longest_of_three_bounds_an_operation():
    one = ROOFLINE.Operation("", flops=7e9, bytes=8e9, kind="product")
    assert one.seconds(1e12, 1e10) == pytest.approx(1.0)
    assert one.seconds(1e9, 1e12) == pytest.approx(10.0)
    assert ROOFLINE.Operation("", 0, 0, "loop").seconds(1e12, 1e12) == ROOFLINE.LAUNCH


def test_the_tower_is_the_released_ones():
    graphs = ROOFLINE.graphs("0.5b", 256)
    assert sum(one.flops for one in graphs["tower"]) == pytest.approx(489e9 / 16, rel=0.03)
    moved = {name: sum(one.bytes for one in graph) for name, graph in graphs.items()}
    assert moved["token"] > 0.5e9 * 1.4  # its weights in bfloat16
    assert moved["token, 4 bits"] < moved["token"] / 2
    assert len(graphs["tower"]) == 331  # as tests/models/test_metal.py counts them
