"""Prompt caches' files that were damaged, forged or made by others."""

import functools
import json
import tempfile
from pathlib import Path

import mlx.core as mx

from mlx_fastvlm import PromptCache, generate, load, save_prompt_cache
from tests.cache.test_prompt_file import file_of

from .cases import Case


@functools.cache
def _written(checkpoint):
    model, processor = load(checkpoint)
    cache = PromptCache()
    generate(model, processor, "Hi", prompt_cache=cache, max_tokens=3)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        save_prompt_cache(file, cache)
        arrays, metadata = mx.load(str(file), return_metadata=True)
        mx.eval(arrays)
        return json.loads(metadata["mlx_fastvlm"]), arrays, metadata["sha256"], file.read_bytes()


def forged(words, change):
    """Changed by ``change(entries, arrays)``, with a digest that fits."""

    def arguments(place):
        entries, arrays, *_ = _written(place.good)
        entries, arrays = dict(entries), dict(arrays)
        change(entries, arrays)
        return ["--prompt-cache", place.file("a.safetensors", file_of(entries, arrays))]

    return Case(words, arguments)


def entry(words, **changes):
    return forged(words, lambda entries, _: entries.update(changes))


def without(name):
    return forged(f"lack '{name}'", lambda entries, _: entries.pop(name))


def tensor(words, change):
    return forged(words, lambda _, arrays: arrays.update({"0.keys": change(arrays["0.keys"])}))


def damaged(words, change):
    """The bytes changed, and the digest as it was."""
    return Case(words, lambda place: ["--prompt-cache", place.file("a.safetensors", change(_written(place.good)[3]))])


def zeroed(place):
    entries, arrays, sha256, _ = _written(place.good)
    zeros = {name: mx.zeros_like(x) for name, x in arrays.items()}
    return ["--prompt-cache", place.file("a.safetensors", file_of(entries, zeros, sha256))]


CASES = {
    **{f"prompt cache: without {name}": without(name) for name in ("model", "offset", "tokens", "keep", "policy")},
    "prompt cache: without a format": forged("not a prompt cache", lambda entries, _: entries.pop("format")),
    "prompt cache: another version's": entry("another version's", format="mlx_fastvlm prompt cache 1"),
    "prompt cache: a format that is a number": entry("not a prompt cache", format=2),
    "prompt cache: another model's": entry("made with another model", model="0" * 32),
    "prompt cache: a model that is a number": entry("made with another model", model=5),
    "prompt cache: one entry more": entry("the unknown entry 'colour'", colour=1),
    "prompt cache: offset 0": entry("offset is 0", offset=0),
    "prompt cache: offset -1": entry("offset is -1", offset=-1),
    "prompt cache: offset a text": entry("offset is '8'", offset="8"),
    "prompt cache: fewer tokens than it holds": entry("of 3 tokens", offset=3),
    "prompt cache: tokens a text": entry("tokens is not a list", tokens="abc"),
    "prompt cache: a token of no vocabulary": entry("among its tokens is 320", tokens=[320]),
    "prompt cache: half an image": entry("among its tokens is ['f', 5]", tokens=[["f", 5]]),
    "prompt cache: a token that is a list": entry("among its tokens is []", tokens=[[]]),
    "prompt cache: keep -1": entry("keep is -1", keep=-1),
    "prompt cache: a policy of 5 bits": entry("policy is [None, 5, 64]", policy=[None, 5, 64]),
    "prompt cache: a policy of nothing": entry("policy is None", policy=None),
    "prompt cache: a policy for another head_dim": entry("policy is [None, 8, 32]", policy=[None, 8, 32]),
    "prompt cache: a policy for fewer tokens": entry("keep is ", policy=[2, None, 64]),
    "prompt cache: a tensor missing": forged("is missing", lambda _, arrays: arrays.pop("0.keys")),
    "prompt cache: a tensor more": forged("none of this model", lambda _, a: a.update({"9.keys": a["0.keys"]})),
    "prompt cache: a flat tensor": tensor("has the shape", lambda x: x.reshape(-1)),
    "prompt cache: integers": tensor("holds", lambda x: x.astype(mx.int32)),
    "prompt cache: two types": tensor("of several types", lambda x: x.astype(mx.float16)),
    "prompt cache: NaN": tensor("NaN or infinity", lambda x: x * float("nan")),
    "prompt cache: zeros": Case("does not hold what was written", zeroed),
    "prompt cache: a bit": damaged("does not hold what was written", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "prompt cache: cut off": damaged("not a prompt cache", lambda data: data[:-100]),
    "prompt cache: longer": damaged("not a prompt cache", lambda data: data + b"more"),
    "prompt cache: a model's file": Case(
        "not a prompt cache", lambda place: ["--prompt-cache", f"{place.good}/model.safetensors"]
    ),
}
