"""Prompt caches in safetensors files."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..errors import one_line
from ..files import atomic_file, read_safetensors
from .fingerprint import model_fingerprint
from .parameters import parameters_of
from .prompt import Contents, PromptCache
from .prompt_schema import Malformed, check_entries, check_names, check_tensors, digest

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmModel
    from .policy import CachePolicy

_KIND = "mlx_fastvlm prompt cache"
_FORMAT = f"{_KIND} 2"


def save_prompt_cache(file: str | Path, cache: PromptCache) -> None:
    """Write a prompt cache to a safetensors file; the images themselves are not in it.

    An answer that uses the cache in another thread waits meanwhile.
    """
    with cache.at_rest() as contents:
        if not contents.offset:
            raise ValueError("The prompt cache is empty; generate something with it before saving it.")
        if not contents.current:
            raise ValueError(
                "The model's weights have changed since the prompt cache was filled; ask again, then save."
            )
        stored = dict(tree_flatten([_stored(kv) for kv in contents.caches]))
        entries = {
            "format": _FORMAT,
            "model": model_fingerprint(contents.model),
            "offset": contents.offset,
            "tokens": contents.tokens,
            "keep": contents.keep,
            "policy": astuple(cache.policy),
        }
        metadata = {"mlx_fastvlm": json.dumps(entries), "sha256": digest(entries, stored)}
        # Opened here, since MLX would add an extension of its own to a name.
        with atomic_file(Path(file)) as unfinished, unfinished.open("wb") as opened:
            mx.save_safetensors(opened, stored, metadata)


def _stored(cache: Any) -> dict[str, Any]:
    """What one layer's cache holds, oldest first, without free places."""
    return {"keys": tree_map(cache.in_order, cache.keys), "values": tree_map(cache.in_order, cache.values)}


def load_prompt_cache(file: str | Path, model: FastVlmModel) -> PromptCache:
    """Read what :func:`save_prompt_cache` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no prompt cache, or another model's, or no longer what was written; a file that was changed
            on purpose, digest included, is not told from one that was written so.
    """
    file = Path(file)
    shown = one_line(str(file))
    if not file.is_file():
        raise FileNotFoundError(f"{shown}: no such prompt cache; check the path.")
    arrays, entries, written = _read(file)
    try:
        if entries["format"] != _FORMAT:
            raise ValueError(f"{shown} is another version's prompt cache; make it again with save_prompt_cache.")
        check_names(entries)
        if entries["model"] != model_fingerprint(model):
            raise ValueError(f"{shown} was made with another model; make it again with this one.")
        policy, tokens = check_entries(entries, model)
        check_tensors(arrays, entries["offset"], policy, model)
        mx.eval(arrays)  # now: another thread may use them, and the file may change
        if digest(entries, arrays) != written:
            raise Malformed("it does not hold what was written")
    except (Malformed, RuntimeError) as error:  # MLX's, where the file changes under its hands
        why = one_line(str(error))
        raise ValueError(f"{shown} is damaged ({why}); make it again with save_prompt_cache.") from None
    return PromptCache.from_policy(policy, _contents(arrays, entries, tokens, policy, model))


def _read(file: Path) -> tuple[dict[str, mx.array], dict[str, Any], str | None]:
    """The tensors, not yet read from disk, the metadata, and the digest that was written with them."""
    try:
        arrays, metadata = read_safetensors(file)
        entries = json.loads(metadata["mlx_fastvlm"])
        known = entries["format"].startswith(_KIND)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise ValueError(
            f"{one_line(str(file))} is not a prompt cache of this package; make it with save_prompt_cache."
        )
    return arrays, entries, metadata.get("sha256")


def _contents(
    arrays: dict[str, mx.array], entries: dict[str, Any], tokens: list[Any], policy: CachePolicy, model: FastVlmModel
) -> Contents:
    caches = policy.make_caches(model, entries["keep"])
    offset = entries["offset"]
    for cache, parts in zip(caches, tree_unflatten(list(arrays.items()))):
        if policy.max_kv_size is None:
            cache.keys, cache.values, cache.offset = parts["keys"], parts["values"], offset
        else:
            cache.restore(parts["keys"], parts["values"], offset)
    return Contents(tokens, entries["keep"], model, caches, parameters_of(model))
