"""A prompt cache's file is what was written, or refused in one sentence, whatever was changed in it."""

import functools
import json
import struct
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_fastvlm import PromptCache, load_prompt_cache, save_prompt_cache, stream_generate
from mlx_fastvlm.cache.prompt_schema import digest
from tests.support.images import IMAGE
from tests.support.models import wide_model

POLICIES = [{}, {"kv_bits": 8}, {"max_kv_size": 120}, {"max_kv_size": 120, "kv_bits": 4}]


def file_of(entries, arrays, sha256=None):
    """A file with these contents; with a forged digest, or none for False, unless one is given."""
    sha256 = digest(entries, arrays) if sha256 is None else sha256
    metadata = {"mlx_fastvlm": json.dumps(entries)} | ({"sha256": sha256} if sha256 else {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        mx.save_safetensors(str(file), arrays, metadata)
        return file.read_bytes()


@functools.cache
def written(policy):
    """What :func:`save_prompt_cache` wrote: the cache, the file, its metadata, tensors and digest."""
    model, processor = wide_model()
    cache = PromptCache(**POLICIES[policy])
    for _ in stream_generate(model, processor, "What is this?", IMAGE, prompt_cache=cache, max_tokens=60):
        pass
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        save_prompt_cache(file, cache)
        arrays, metadata = mx.load(str(file), return_metadata=True)
        mx.eval(arrays)
        return cache, file.read_bytes(), json.loads(metadata["mlx_fastvlm"]), arrays, metadata["sha256"]


def loaded(data):
    """The prompt cache, or None where the file is refused in one sentence that names it and says what to do."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        file.write_bytes(data)
        try:
            return load_prompt_cache(file, wide_model()[0])
        except ValueError as error:
            said = str(error)
        assert said.startswith(str(file))
        assert "; make it" in said
        assert "\n" not in said
        assert len(said) < 500
        return None


def same(one, other):
    facts = [(c.tokens, c.keep, c.offset, c.policy) for c in (one, other)]
    arrays = [
        tree_flatten([[[kv.in_order(x) for _, x in tree_flatten(part)] for part in (kv.keys, kv.values)] for kv in c])
        for c in (one.caches, other.caches)
    ]
    return facts[0] == facts[1] and all(
        a.dtype == b.dtype and mx.array_equal(a, b) for (_, a), (_, b) in zip(*arrays, strict=True)
    )


@pytest.mark.parametrize("policy", range(len(POLICIES)))
def test_what_was_written_is_read(policy):
    cache, data, entries, arrays, sha256 = written(policy)
    assert same(loaded(data), cache)
    assert digest(entries, arrays) == sha256


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
ENTRIES = st.sampled_from(["format", "model", "offset", "tokens", "keep", "policy"])


@settings(max_examples=150)
@given(st.integers(0, 3), ENTRIES, ANY | st.just("missing"), st.booleans())
def test_other_metadata(policy, name, value, forged):
    """Also with a digest that fits: then the schema alone stands before what would be a TypeError later."""
    cache, _, entries, arrays, sha256 = written(policy)
    changed = {key: known for key, known in entries.items() if key != name}
    changed |= {} if value == "missing" else {name: value}
    got = loaded(file_of(changed, arrays, None if forged else sha256))
    assert got is None or same(got, cache) or (forged and got.policy == cache.policy and name in ("keep", "offset"))


@settings(max_examples=150)
@given(st.integers(0, 3), st.data())
def test_other_tokens(policy, data):
    """One of them replaced, doubled or left out."""
    cache, _, entries, arrays, sha256 = written(policy)
    tokens, place = list(entries["tokens"]), data.draw(st.integers(0, len(entries["tokens"]) - 1))
    tokens[place : place + 1] = data.draw(st.lists(ANY | st.sampled_from(tokens), max_size=2))
    got = loaded(file_of({**entries, "tokens": tokens}, arrays, sha256))
    assert got is None or same(got, cache)


def tampered(data, arrays):
    """One tensor renamed, left out, or with other numbers, another type or another shape."""
    name = data.draw(st.sampled_from(sorted(arrays)))
    x = arrays[name]
    others = {key: known for key, known in arrays.items() if key != name}
    dtype = data.draw(st.sampled_from([mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.uint32, mx.uint8, mx.bool_]))
    ways = ("renamed", "missing", "more", "zeros", "one number", "NaN", "type", "shape", "cut")
    how = data.draw(st.sampled_from(ways))
    if how == "renamed":
        return {**others, data.draw(st.text(max_size=9) | st.sampled_from(["keys", "9.keys", f"{name}.0"])): x}
    if how == "missing":
        return others
    if how == "more":
        return {**arrays, data.draw(st.text(max_size=9)): x}
    if how == "one number":
        changed = np.array(x.astype(mx.float32)).reshape(-1)
        changed[data.draw(st.integers(0, changed.size - 1))] += 1
        return {**others, name: mx.array(changed).reshape(x.shape).astype(x.dtype)}
    shapes = [(-1,), (x.shape[2], -1), (1, x.shape[1], -1, 1), (*x.shape, 1), (1, 1, *x.shape)]
    return {**others, name: {
        "zeros": mx.zeros_like(x),
        "NaN": mx.full(x.shape, float("nan")).astype(x.dtype),
        "type": x.astype(dtype),
        "shape": x.reshape(data.draw(st.sampled_from(shapes))),
        "cut": x[..., : data.draw(st.integers(1, x.shape[2])), :],
    }[how]}  # fmt: skip


@settings(max_examples=150)
@given(st.integers(0, 3), st.data())
def test_other_tensors(policy, data):
    cache, _, entries, arrays, sha256 = written(policy)
    got = loaded(file_of(entries, tampered(data, arrays), sha256))
    assert got is None or same(got, cache)


@settings(max_examples=150)
@given(st.integers(0, 3), st.data())
def test_forged_tensors_are_a_cache_or_refused(policy, data):
    """With a digest that fits them: names, shapes and types are right for the model, or the file is refused."""
    cache, _, entries, arrays, _ = written(policy)
    got = loaded(file_of(entries, tampered(data, arrays)))
    if got is not None:
        logits = wide_model()[0](mx.array([[1, 2, 3]]), past_key_values=got.caches).logits
        assert logits.shape[:2] == (1, 3)
        assert got.offset == cache.offset + 3


@settings(max_examples=200)
@given(st.integers(0, 3), st.data())
def test_other_bytes(policy, data):
    cache, whole, *_ = written(policy)
    (header,) = struct.unpack("<Q", whole[:8])
    place = data.draw(st.integers(0, header + 7) | st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["changed", "cut", "missing", "more"]))
    changed = {
        "changed": whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :],
        "cut": whole[:place],
        "missing": whole[:place] + whole[place + data.draw(st.integers(1, 9)) :],
        "more": whole[:place] + data.draw(st.binary(min_size=1, max_size=9)) + whole[place:],
    }[how]
    got = loaded(changed)
    assert got is None or same(got, cache)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": 0}, "offset is 0"),
        ({"offset": -1}, "offset is -1"),
        ({"offset": 2**31}, "offset is 2147483648"),
        ({"offset": True}, "offset is True"),
        ({"offset": 5}, "hold 120 of 5 tokens"),
        ({"keep": 120}, "keep is 120"),
        ({"keep": -1}, "keep is -1"),
        ({"policy": []}, r"policy is \[\]"),
        ({"policy": [120, 5, 64]}, r"policy is \[120, 5, 64\]"),
        ({"tokens": []}, "tokens is not a list of tokens"),
        ({"tokens": [10**6]}, "among its tokens is 1000000"),
        ({"tokens": [-200]}, "among its tokens is -200"),
        ({"tokens": [["f", 1]]}, r"among its tokens is \['f', 1\]"),
        ({"tokens": [["f", 0], ["g", 1]]}, r"among its tokens is \['g', 1\]"),
        ({"tokens": [["f", False]]}, r"among its tokens is \['f', False\]"),
        ({"model": None}, "made with another model"),
        ({"format": "mlx_fastvlm prompt cache 1"}, "another version's"),
        ({"format": 2}, "not a prompt cache"),
        ({"colour": 1}, "unknown entry 'colour'"),
    ],
    ids=str,
)
def test_values_that_are_none(changes, words, tmp_path):
    _, _, entries, arrays, _ = written(2)
    file = tmp_path / "a.safetensors"
    file.write_bytes(file_of(entries | changes, arrays))
    with pytest.raises(ValueError, match=words):
        load_prompt_cache(file, wide_model()[0])


def test_a_file_without_a_digest_or_with_another(tmp_path):
    _, _, entries, arrays, _ = written(0)
    for sha256 in (False, "0" * 64):
        assert loaded(file_of(entries, arrays, sha256)) is None


def test_metadata_nested_without_end():
    _, _, _, arrays, _ = written(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        mx.save_safetensors(str(file), arrays, {"mlx_fastvlm": "[" * 10**5})
        assert loaded(file.read_bytes()) is None
