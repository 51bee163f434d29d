"""A short run of the fuzzer, some 20 seconds, the same inputs every time; and hypothesis on images and prompts."""

import json
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlx_fastvlm import load_image
from tests.support import fuzz

INPUTS = {
    "images": 1000,
    "prompts": 1000,
    "config": 150,
    "tokenizer": 300,
    "tensors": 150,
    "requests": 1000,
    "shards": 600,
    "adapters": 300,
    "training": 1000,
}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_nothing_but_clear_errors(target):
    found = fuzz.fuzz(target, inputs=INPUTS[target], seed=1)
    assert found.keys() <= {"read", "refused"}
    assert min(found["read"], found["refused"]) > 0  # else the inputs test nothing


WORDS = st.sampled_from(["<image>", "<|im_end|>", "<|im_start|>", "\ue000", "\ud800", "\n", "{{ 1 }}"])
TEXTS = st.lists(WORDS | st.text(max_size=20), max_size=5).map("".join)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "image_url", "video"]) | TEXTS}, optional={
    "text": TEXTS, "image": st.none() | TEXTS, "image_url": TEXTS | st.fixed_dictionaries({"url": TEXTS})
})  # fmt: skip
MESSAGES = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]) | TEXTS}, optional={
    "content": TEXTS | st.lists(PARTS, max_size=4) | st.none(), "name": TEXTS
})  # fmt: skip


@pytest.fixture(scope="module")
def prompts():
    with tempfile.TemporaryDirectory() as folder:
        yield fuzz.Prompts(folder)


@settings(max_examples=300)
@given(prompt=TEXTS | st.lists(MESSAGES, max_size=4))
def test_prompts_that_hypothesis_makes(prompts, prompt):
    message = ""
    try:
        prompts.feed(json.dumps([prompt]).encode())  # which also looks for turns that a message has ended
    except (ValueError, OSError) as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=300)
@given(
    source=st.binary(max_size=200)
    | TEXTS
    | arrays.arrays(
        arrays.scalar_dtypes() | st.just("O"), arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
    )
)
def test_images_that_hypothesis_makes(source):
    try:
        image, message = load_image(source), ""
    except (ValueError, OSError) as error:
        image, message = None, str(error)
    assert "\n" not in message
    assert image is None or (image.mode == "RGB" and 0 not in image.size)
