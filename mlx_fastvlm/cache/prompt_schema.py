"""What a prompt cache's file must hold: each entry of its metadata, each tensor, and the digest of them all."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import short
from .policy import CachePolicy

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmModel
    from .tokens import Token

FLOATS = (mx.float32, mx.float16, mx.bfloat16)  # that a decoder computes in
ENTRIES = {"format", "model", "offset", "tokens", "keep", "policy"}


class Malformed(ValueError):
    """What is wrong with a file, as half a sentence."""


def digest(entries: dict[str, Any], arrays: dict[str, mx.array]) -> str:
    """Of metadata and tensors, by which a file is known to hold what was written.

    It shows damage. A forger can compute it too: a prompt cache is to be trusted no further than whoever made it.
    """
    hashed = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name, x in sorted(arrays.items()):
        hashed.update(json.dumps([name, x.shape, str(x.dtype)]).encode())
        data: Any = mx.contiguous(x).view(mx.uint8)  # a buffer, though its type does not say so
        hashed.update(memoryview(data).cast("B"))
    return hashed.hexdigest()


def check_names(entries: dict[str, Any]) -> None:
    """``Malformed`` unless the metadata are those that this package writes."""
    if entries.keys() != ENTRIES:
        odd = min(entries.keys() ^ ENTRIES)
        raise Malformed(f"its metadata {'lack' if odd in ENTRIES else 'have the unknown entry'} {short(odd)}")


def check_entries(entries: dict[str, Any], model: FastVlmModel) -> tuple[CachePolicy, list[Token]]:
    """The policy and the tokens of a file's metadata; ``Malformed`` for a value that this package does not write."""
    policy = _policy(entries["policy"], model)
    if not _whole(entries["offset"], 1) or entries["offset"] >= 2**31:
        raise Malformed(f"offset is {short(entries['offset'])}")
    if not _whole(entries["keep"], 0) or (policy.max_kv_size is not None and entries["keep"] >= policy.max_kv_size):
        raise Malformed(f"keep is {short(entries['keep'])}")
    return policy, _tokens(entries["tokens"], model.config.text_config.vocab_size)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _policy(value: Any, model: FastVlmModel) -> CachePolicy:
    try:
        max_kv_size, kv_bits, kv_group_size = value
        policy = CachePolicy(max_kv_size, kv_bits, kv_group_size)
        policy.check(model)
    except (TypeError, ValueError):
        raise Malformed(f"policy is {short(value)}") from None
    return policy


def _tokens(value: Any, vocab_size: int) -> list[Token]:
    """Ids of the vocabulary, and each image from its first token on, one after the other."""
    if not isinstance(value, list) or not value:
        raise Malformed("tokens is not a list of tokens")
    tokens: list[Token] = []
    for token in value:
        tokens.append(tuple(token) if isinstance(token, list) else token)
        if not (_is_id(token, vocab_size) or _is_image(tokens)):
            raise Malformed(f"among its tokens is {short(token)}")
    return tokens


def _is_id(token: Any, vocab_size: int) -> bool:
    return _whole(token, 0) and token < vocab_size


def _is_image(tokens: list[Token]) -> bool:
    """Whether the last of the tokens is an image's, which goes on from the one before."""
    match tokens[-1]:
        case (str(fingerprint), int(place)) if not isinstance(place, bool):
            return place == 0 or (len(tokens) > 1 and tokens[-2] == (fingerprint, place - 1))
    return False


def check_tensors(arrays: dict[str, mx.array], offset: int, policy: CachePolicy, model: FastVlmModel) -> None:
    """``Malformed`` unless the tensors are a cache's of this model that has seen ``offset`` tokens.

    Their shapes and types are looked at before any is read from disk.
    """
    layers = len(model.language_model.layers)
    widths = _widths(policy, model.config.text_config.head_dim)
    names = {f"{layer}.{part}{end}" for layer in range(layers) for part in ("keys", "values") for end in widths}
    if arrays.keys() != names:
        odd = min(arrays.keys() ^ names)
        raise Malformed(f"the tensor {short(odd)} is {'missing' if odd in names else 'none of this model'}")
    heads, count = model.config.text_config.num_key_value_heads, _places(arrays, offset, policy)
    floats = {x.dtype for name, x in arrays.items() if widths[_end(name)][1] is None}
    for name, x in arrays.items():
        width, dtype = widths[_end(name)]
        if x.shape != (1, heads, count, width):
            raise Malformed(f"the tensor {name} has the shape {x.shape}")
        if x.dtype not in FLOATS if dtype is None else x.dtype != dtype:
            raise Malformed(f"the tensor {name} holds {x.dtype}")
    if len(floats) > 1:
        raise Malformed("its tensors are of several types")
    if not all(mx.isfinite(x).all() for x in arrays.values() if x.dtype in FLOATS):
        raise Malformed("it holds NaN or infinity")


def _widths(policy: CachePolicy, head_dim: int) -> dict[str, tuple[int, mx.Dtype | None]]:
    """What a tensor's name ends with -> its last dimension, and its type, None for the one the decoder computes in."""
    if policy.kv_bits is None:
        return {"": (head_dim, None)}
    groups = (head_dim // policy.kv_group_size, None)
    return {".0": (head_dim * policy.kv_bits // 32, mx.uint32), ".1": groups, ".2": groups}


def _end(name: str) -> str:
    _, _, end = name.split(".", 1)[1].partition(".")
    return f".{end}" if end else ""


def _places(arrays: dict[str, mx.array], offset: int, policy: CachePolicy) -> int:
    """How many tokens the tensors hold: all, or of a bounded cache that has forgotten some, its size at least."""
    first = next(iter(arrays.values()))
    count = first.shape[2] if first.ndim == 4 else -1
    least = offset if policy.max_kv_size is None else min(offset, policy.max_kv_size)
    if not least <= count <= offset:
        raise Malformed(f"its tensors hold {max(count, 0)} of {offset} tokens")
    return count
