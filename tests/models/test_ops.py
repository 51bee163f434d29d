"""Attention over quantized keys and values: what mlx-lm computes, bit for bit."""

import mlx.core as mx
import pytest
from mlx_lm.models.base import quantized_scaled_dot_product_attention

from mlx_fastvlm.models import ops


@pytest.mark.parametrize("mask", [None, "causal", "all", "rows"])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_quantized_attention_is_mlx_lms(dtype, bits, heads, kv_heads, queries, mask):
    mx.random.seed(0)
    keys = 12
    q = mx.random.normal((2, heads, queries, 64)).astype(dtype)
    k, v = (mx.quantize(mx.random.normal((2, kv_heads, keys, 64)).astype(dtype), 32, bits) for _ in range(2))
    if mask == "all":
        mask = ops.causal_mask(queries, keys)
    elif mask == "rows":  # the first row has padding in front
        mask = ops.causal_mask(queries, keys) & (mx.arange(keys) >= mx.array([3, 0])[:, None, None, None])
    # It scales its queries in place, where they have no other user.
    expected = quantized_scaled_dot_product_attention(mx.array(q), k, v, 0.125, mask, group_size=32, bits=bits)
    got = ops.quantized_attention(q, k, v, 0.125, mask, 32, bits)
    assert got.dtype == dtype
    assert mx.array_equal(got, expected)


def test_a_cache_says_whether_it_is_quantized():
    class Cache:
        group_size, bits = 32, 8

    mx.random.seed(0)
    q, k, v = (mx.random.normal((1, 2, 3, 64)) for _ in range(3))
    packed = mx.quantize(k, 32, 8), mx.quantize(v, 32, 8)
    plain = ops.cached_attention(q, k, v, 0.125, "causal", None)
    assert mx.abs(ops.cached_attention(q, *packed, 0.125, "causal", Cache()) - plain).max() <= 0.05 * plain.std()
