"""A batch's rows equal the same prompts alone."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_fastvlm import PromptCache, VisionCache, batch_generate, generate
from tests.support import small
from tests.support.models import wide_model

IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white"), Image.new("RGB", (9, 9))]
ROW = st.tuples(st.text("abc <>é", min_size=1, max_size=40), st.lists(st.sampled_from(IMAGES), max_size=3))


@settings(max_examples=12)
@given(
    rows=st.lists(ROW, min_size=1, max_size=5),
    ends=st.sets(st.integers(0, 255), max_size=60),
    batch_size=st.integers(1, 5),
    step=st.sampled_from([7, 2048]),
)
def test_batch_equals_single(rows, ends, batch_size, step):
    """Any lengths, any images, rows that end at different times or not at all."""
    model, processor = wide_model()
    processor = dataclasses.replace(processor, eos_token_ids=frozenset(ends))
    prompts, images = zip(*rows)
    options = {"max_tokens": 9, "prefill_step_size": step}
    batch = batch_generate(model, processor, list(prompts), list(images), batch_size=batch_size, **options)
    assert batch == [generate(model, processor, prompt, image, **options) for prompt, image in rows]


@pytest.fixture
def wide():
    return wide_model()


def test_sampling_in_a_batch_is_sampling_alone(wide):
    prompts, images = ["a", "What is this?", "b"], [None, IMAGES[0], IMAGES[1:]]
    for options in (
        {"temperature": 1.5, "seed": 3},
        {"repetition_penalty": 2.0, "repetition_context_size": 50},
        {"logit_bias": {65: 4.0}, "stop": "A"},
        {"system": "Be brief.", "image_size": 64},
    ):
        batch = batch_generate(*wide, prompts, images, max_tokens=12, **options)
        assert batch == [generate(*wide, p, i, max_tokens=12, **options) for p, i in zip(prompts, images)]
        assert batch != batch_generate(*wide, prompts, images, max_tokens=12)


@pytest.fixture
def rows(wide, monkeypatch):
    """How many rows the decoder has been given at each call."""
    rows = []
    decoder = type(wide[0].language_model)
    run = decoder.__call__

    def watch(self, embeddings, *args, **kwargs):
        rows.append(embeddings.shape[0])
        return run(self, embeddings, *args, **kwargs)

    monkeypatch.setattr(decoder, "__call__", watch)
    return rows


def test_batch_size_is_how_many_run_at_a_time(wide, rows):
    model, processor = wide
    batch_generate(model, processor, ["a"] * 5, max_tokens=1, batch_size=2)
    assert rows == [2, 2, 1]


def test_rows_that_are_done_leave(wide, rows):
    model, processor = wide
    prompts = ["a", "What is this?", "xyz"]
    answers = [generate(model, processor, prompt, max_tokens=20) for prompt in prompts]
    first = next(c for c in answers[0] if ord(c) < 128)
    processor = dataclasses.replace(processor, eos_token_ids=frozenset(processor.encode(first)))
    rows.clear()
    batch_generate(model, processor, prompts, max_tokens=20)
    assert rows[0] == 3
    assert min(rows) < 3


def test_messages_and_images_in_them(wide):
    messages = [{"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "a"}]}]
    assert batch_generate(*wide, [messages, "b"], max_tokens=8) == [
        generate(*wide, "a", IMAGES[0], max_tokens=8),
        generate(*wide, "b", max_tokens=8),
    ]


def test_an_image_in_many_rows_is_encoded_once(wide, monkeypatch):
    model, processor = wide
    calls = []
    encode = type(model).get_image_features
    monkeypatch.setattr(type(model), "get_image_features", lambda self, x: calls.append(len(x)) or encode(self, x))
    batch_generate(model, processor, ["a", "b"], [IMAGES[0]] * 2, max_tokens=1)
    assert calls == [1]
    cache = VisionCache()
    for _ in range(2):
        batch_generate(model, processor, ["a", "b"], [IMAGES[0]] * 2, max_tokens=1, vision_cache=cache)
        assert calls == [1, 1]


@pytest.mark.gpu
def test_the_options_of_the_kv_cache_in_a_batch(wide):
    """Also progress, which is told of each prompt; with a prompt cache the rows take turns."""
    prompts, images = ["a", "What is this?", "b"], [None, IMAGES[0], IMAGES[1:]]
    for options in ({"max_kv_size": 130}, {"kv_bits": 8}, {"max_kv_size": 130, "kv_bits": 4}, {"progress": print}):
        batch = batch_generate(*wide, prompts, images, max_tokens=40, **options)
        assert batch == [generate(*wide, p, i, max_tokens=40, **options) for p, i in zip(prompts, images)]
    cache = PromptCache()
    batch = batch_generate(*wide, prompts, images, max_tokens=12, prompt_cache=cache)
    assert batch == batch_generate(*wide, prompts, images, max_tokens=12)
    assert cache.offset > 0


def test_bad_batches_are_refused_before_anything_runs(wide, monkeypatch):
    model, processor = wide
    monkeypatch.setattr(type(model), "embed", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="2 prompts and images for 1"):
        batch_generate(model, processor, ["a", "b"], [None])
    with pytest.raises(ValueError, match="must be a list"):
        batch_generate(model, processor, "a")
    with pytest.raises(ValueError, match="batch_size"):
        batch_generate(model, processor, ["a"], batch_size=0)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        batch_generate(model, processor, ["a", "b"], [None, "nowhere.png"])
    assert batch_generate(model, processor, []) == []
