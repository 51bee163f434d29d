"""A tree of arrays as one array, and back: what is done to all of them is done once."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten


def pack(tree: Any) -> mx.array:
    """All values of a tree, array by array in the order of their names, float32."""
    return mx.concatenate([array.astype(mx.float32).flatten() for _, array in _by_name(tree)])


def unpack(packed: mx.array, like: Any) -> Any:
    """What :func:`pack` made of a tree -> its arrays again, of the names and shapes that ``like`` has; float32."""
    arrays, start = [], 0
    for name, array in _by_name(like):
        arrays.append((name, packed[start : start + array.size].reshape(array.shape)))
        start += array.size
    return tree_unflatten(arrays)


def _by_name(tree: Any) -> list[tuple[str, mx.array]]:
    arrays: dict[str, mx.array] = dict(tree_flatten(tree))
    return sorted(arrays.items())
