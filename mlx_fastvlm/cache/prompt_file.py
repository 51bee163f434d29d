"""Prompt caches in safetensors files."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..files import atomic_file, read_safetensors
from .fingerprint import model_fingerprint
from .policy import CachePolicy
from .prompt import Contents, PromptCache

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmModel

_FORMAT = "mlx_fastvlm prompt cache 1"


def save_prompt_cache(file: str | Path, cache: PromptCache):
    """Write a prompt cache to a safetensors file; the images themselves are not in it.

    An answer that uses the cache in another thread waits meanwhile.
    """
    with cache.at_rest() as contents:
        if not contents.offset:
            raise ValueError("The prompt cache is empty; generate something with it before saving it.")
        stored = dict(tree_flatten([_stored(kv) for kv in contents.caches]))
        facts = {
            "format": _FORMAT,
            "model": model_fingerprint(contents.model),
            "offsets": [kv.offset for kv in contents.caches],
            "tokens": contents.tokens,
            "keep": contents.keep,
            "policy": astuple(cache.policy),
        }
        # Opened here, since MLX would add an extension of its own to a name.
        with atomic_file(Path(file)) as unfinished, unfinished.open("wb") as opened:
            mx.save_safetensors(opened, stored, {"mlx_fastvlm": json.dumps(facts)})


def _stored(cache: Any) -> dict[str, Any]:
    """What one layer's cache holds, oldest first, without free places."""
    return {"keys": tree_map(cache.in_order, cache.keys), "values": tree_map(cache.in_order, cache.values)}


def load_prompt_cache(file: str | Path, model: FastVlmModel) -> PromptCache:
    """Read what :func:`save_prompt_cache` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no prompt cache, or another model's.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such prompt cache; check the path.")
    try:
        arrays, metadata = read_safetensors(Path(file))
        facts = json.loads(metadata["mlx_fastvlm"])
        known = facts["format"] == _FORMAT
    except (KeyError, ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{file} is not a prompt cache of this package; make it with save_prompt_cache.")
    if facts["model"] != model_fingerprint(model):
        raise ValueError(f"{file} was made with another model; make it again with this one.")
    mx.eval(arrays)  # now: another thread may use them, and the file may change
    policy = CachePolicy(*facts["policy"])
    caches = policy.make_caches(model, facts["keep"])
    stored = tree_unflatten(list(arrays.items()))
    for cache, parts, offset in zip(caches, stored, facts["offsets"]):
        if policy.max_kv_size is None:
            cache.keys, cache.values, cache.offset = parts["keys"], parts["values"], offset
        else:
            cache.restore(parts["keys"], parts["values"], offset)
    tokens = [tuple(token) if isinstance(token, list) else token for token in facts["tokens"]]
    return PromptCache.from_policy(policy, Contents(tokens, facts["keep"], model, caches))
