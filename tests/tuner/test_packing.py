"""Many arrays as one, and back."""

import mlx.core as mx
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from mlx_fastvlm.tuner.packing import pack, unpack

arrays = st.lists(st.integers(0, 3), max_size=3).map(lambda shape: mx.random.normal(shape))


def branches(inner):
    return st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.sampled_from("abcdef"), inner, min_size=1)


trees = st.recursive(arrays, branches, max_leaves=12).map(lambda tree: {"weights": tree})


@given(trees)
def test_what_is_packed_comes_back(tree):
    packed = pack(tree)
    assert packed.shape == (sum(array.size for _, array in tree_flatten(tree)),)
    found, expected = dict(tree_flatten(unpack(packed, tree))), dict(tree_flatten(tree))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert mx.array_equal(found[name], array)


def test_the_order_of_a_tree_does_not_matter():
    """Gradients and weights are packed apart."""
    a, b = mx.array([1.0]), mx.array([2.0, 3.0])
    assert pack({"a": a, "b": b}).tolist() == pack({"b": b, "a": a}).tolist() == [1, 2, 3]
    again = unpack(mx.array([1.0, 2.0, 3.0]), {"b": b, "a": a})
    assert tree_map(lambda x: x.tolist(), again) == {"a": [1], "b": [2, 3]}


def test_it_is_float32():
    packed = pack({"a": mx.array([1], mx.bfloat16), "b": mx.array([2], mx.int32)})
    assert packed.dtype == mx.float32
    assert packed.tolist() == [1, 2]
