"""What a model is recognised by in another process, so that nothing cached is ever used for another."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .parameters import parameters_of

if TYPE_CHECKING:
    import mlx.nn as nn

ROW = 4096  # 32-bit words that make one sum
PIECE = 2**21  # words that are summed at a time, which bounds the memory


def model_fingerprint(*modules: nn.Module) -> str:
    """Of modules: the name, shape, type and every value of every parameter, 32 characters.

    It is computed on the device, once, and again where a parameter has changed since.
    """
    if len(modules) > 1:
        return _short(hashlib.sha256("".join(model_fingerprint(module) for module in modules).encode()))
    (module,) = modules
    parameters = parameters_of(module)
    if parameters.fingerprint is None:
        parameters.fingerprint = _fingerprint(module)
    return parameters.fingerprint


def _fingerprint(module: nn.Module) -> str:
    named = tree_flatten(module.parameters())
    digest = hashlib.sha256(repr([(name, tuple(x.shape), str(x.dtype)) for name, x in named]).encode())
    sums: list[mx.array] = []
    waiting = 0
    for _, x in named:
        words = _words(x)
        for start in range(0, words.size, PIECE):
            piece = words[start : start + PIECE]
            sums += _sums(piece)
            waiting += piece.size
            if waiting >= PIECE:
                mx.eval(sums)
                waiting = 0
    mx.eval(sums)
    for x in sums:
        digest.update(np.array(x).tobytes())
    return _short(digest)


def _short(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:32]


def _words(x: mx.array) -> mx.array:
    """An array's bytes as one row of 32-bit words; a last incomplete one is filled up with zeros."""
    x = x.flatten()
    if x.nbytes % 4:
        x = x.view(mx.uint8)
        x = mx.pad(x, [(0, -x.size % 4)])
    return x.view(mx.uint32)


@functools.cache
def _multipliers() -> np.ndarray:
    """Random odd numbers of 64 bits."""
    return np.random.RandomState(0).randint(0, 2**63, ROW, np.uint64) * 2 + 1


def _sums(words: mx.array) -> list[mx.array]:
    """Of each row of ROW words, and of what is left of them: the sum of the words times odd numbers, modulo 2**64.

    Multilinear hashing (arXiv 1202.4961): one other word in a row always gives another sum, and several do with all but
    one in 2**32 choices of the multipliers. SHA-256 takes the sums in their order.
    """
    multipliers = mx.array(_multipliers())
    whole = words.size // ROW * ROW
    rows, rest = words[:whole].reshape(-1, ROW), words[whole:]
    sums = []
    if rows.size:
        sums.append((rows.astype(mx.uint64) * multipliers).sum(axis=1))
    if rest.size:
        sums.append((rest.astype(mx.uint64) * multipliers[: rest.size]).sum(axis=0, keepdims=True))
    return sums
