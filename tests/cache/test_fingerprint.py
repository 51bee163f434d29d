"""What models are recognised by: every value of every parameter."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_fastvlm import load
from mlx_fastvlm.cache import fingerprint
from mlx_fastvlm.cache.fingerprint import model_fingerprint


class Arrays(nn.Module):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = list(arrays)


def of(*arrays):
    return model_fingerprint(Arrays(*arrays))


def test_a_model_loaded_again_is_the_same(checkpoint):
    model, _ = load(checkpoint("apple"))
    assert model_fingerprint(load(checkpoint("apple"))[0]) == model_fingerprint(model)
    assert model_fingerprint(model.vision_tower) != model_fingerprint(model.language_model)


def test_every_tensor_matters(checkpoint):
    """Its last value, changed in place by the least that can be."""
    model, _ = load(checkpoint("apple"))
    seen = {model_fingerprint(model)}
    names = tree_flatten(model.parameters())
    for _, x in names:
        last = x.reshape(-1)[-1].view(mx.uint32) + 1
        x[tuple(-1 for _ in x.shape)] = last.view(mx.float32)
        seen.add(model_fingerprint(model))
    assert len(seen) == len(names) + 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.uint8, mx.uint32, mx.bool_, mx.int64])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 4096, 4097, 9001])
def test_any_value_of_any_type(dtype, size):
    x = (mx.arange(size) % 2).astype(dtype)
    seen = {of(x)}
    for i in sorted({0, size // 2, size - 1}):
        y = mx.array(x)
        y[i] = 1 - y[i].astype(mx.int32)
        seen |= {of(y), of(y)}
    assert len(seen) == 1 + len({0, size // 2, size - 1})


@settings(max_examples=40)
@given(st.integers(2, 10_000), st.integers(0, 2**32 - 1), st.sampled_from([mx.float32, mx.bfloat16]))
def test_signs_and_order(size, seed, dtype):
    """A sum alone would miss both, and so would odd multipliers of 32 bits an even number of signs."""
    x = mx.random.normal((size,), key=mx.random.key(seed)).astype(dtype)
    swapped = mx.array(x)
    swapped[0], swapped[size - 1] = x[size - 1], x[0]
    assert len({of(x), of(-x), of(x[::-1]), of(swapped)}) == (
        4 if size > 3 else 3
    )  # of three, the ends swapped are the order turned


def test_shapes_types_and_names_matter():
    x = mx.zeros((4, 6))
    assert len({of(x), of(x.T), of(x.reshape(24)), of(x.astype(mx.int32)), of(x, x), of(x[:2], x[2:])}) == 6


def test_pieces_do_not_matter(monkeypatch):
    """They only bound the memory."""
    x = mx.random.normal((5 * fingerprint.ROW + 7,))
    whole = of(x)
    monkeypatch.setattr(fingerprint, "PIECE", fingerprint.ROW)
    assert of(x) == whole
