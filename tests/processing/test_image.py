"""An image is squared and hashed once, wherever it comes from and wherever it goes."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image as PILImage

from mlx_fastvlm import ChatSession, PromptCache, batch_generate, generate, load_image
from mlx_fastvlm.generation.dataset import caption_dataset
from mlx_fastvlm.processing import preprocess
from tests.support.datasets import job
from tests.support.images import IMAGE, PROMPT, encoded
from tests.support.models import wide_model

OTHER = PILImage.new("RGB", (40, 60), "white")


@pytest.fixture
def wide():
    return wide_model()


@pytest.fixture
def made(monkeypatch):
    """How many images were squared, and how many were hashed."""
    made = {"square": 0, "image_fingerprint": 0}

    def counting(name, function):
        def count(*arguments):
            made[name] += 1
            return function(*arguments)

        return count

    for name in made:
        monkeypatch.setattr(preprocess, name, counting(name, getattr(preprocess, name)))
    return made


def test_an_image_is_what_the_model_sees(wide):
    _, processor = wide
    image = processor.prepare(IMAGE, 64)[0]
    assert (image.pixels.shape, image.pixels.dtype) == ((64, 64, 3), np.uint8)
    assert np.array_equal(image.pixels / np.float32(255), np.array(processor.preprocess(IMAGE, 64)[0]))
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.fingerprint = "x"


def test_images_are_equal_where_their_pixels_are(wide):
    _, processor = wide
    one, again, file, other = (processor.prepare(s)[0] for s in (IMAGE, IMAGE, encoded(IMAGE), OTHER))
    assert one == again == file != other
    assert len({one, again, file, other}) == 2
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    normalised = dataclasses.replace(processor.image_settings, mean=(0.5, 0.5, 0.5))
    assert dataclasses.replace(processor, image_settings=normalised).prepare(IMAGE)[0] != one


def test_an_image_is_taken_as_it_is_only_where_it_fits(wide, made):
    _, processor = wide
    image = processor.prepare(IMAGE)[0]
    assert processor.prepare(image)[0] is image
    assert made == {"square": 1, "image_fingerprint": 1}
    smaller = processor.prepare(image, 64)[0]
    assert smaller.pixels.shape == (64, 64, 3)
    assert made == {"square": 2, "image_fingerprint": 2}
    assert np.array_equal(smaller.pixels, processor.prepare(PILImage.fromarray(image.pixels), 64)[0].pixels)
    normalised = dataclasses.replace(processor.image_settings, std=(0.5, 0.5, 0.5))
    changed = dataclasses.replace(processor, image_settings=normalised).prepare(image)[0]
    assert np.array_equal(changed.pixels, image.pixels)
    assert changed.fingerprint != image.fingerprint


def test_an_image_is_a_source_everywhere(wide):
    """And gives what the file that it was made from gives."""
    model, processor = wide
    image = processor.prepare(IMAGE)[0]
    options = {"max_tokens": 6}
    plain = generate(model, processor, PROMPT, IMAGE, **options)
    parts = [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]
    session = ChatSession(model, processor, **options)
    assert generate(model, processor, PROMPT, image, **options) == plain
    assert generate(model, processor, [{"role": "user", "content": parts}], **options) == plain
    assert batch_generate(model, processor, [PROMPT], [image], **options) == [plain]
    assert session.ask(PROMPT, image) == plain
    assert session.images[0] is image
    assert np.array_equal(np.asarray(load_image(image)), image.pixels)
    inputs = [processor(text="<image>", images=source)["pixel_values"] for source in (image, IMAGE)]
    assert np.array_equal(*map(np.array, inputs))
    assert generate(model, processor, PROMPT, image, image_size=64, **options) == generate(
        model, processor, PROMPT, PILImage.fromarray(image.pixels), image_size=64, **options
    )


def test_a_conversation_of_five_turns(wide, made):
    session = ChatSession(*wide, max_tokens=2)
    session.ask("a", IMAGE)
    session.ask("b")
    session.ask("c", [OTHER, encoded(IMAGE)])
    session.ask("d")
    session.ask("e")
    assert len(session.images) == 3
    assert made == {"square": 3, "image_fingerprint": 3}


def test_a_bounded_conversation_that_is_read_again(wide, made):
    session = ChatSession(*wide, max_tokens=40, max_kv_size=110)
    session.ask("a", IMAGE)
    stream = session.stream("b")
    next(stream)
    stream.close()
    session.ask("c")
    assert made == {"square": 1, "image_fingerprint": 1}


def test_a_folder_of_captions(wide, made, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        IMAGE.resize((60 + i, 50)).save(folder / f"{i}.png")
    caption_dataset(*wide, job(folder, tmp_path / "out.jsonl", batch_size=2), max_tokens=2)
    assert len([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]) == 5
    assert made == {"square": 5, "image_fingerprint": 5}


def test_a_prompt_cache_and_a_single_answer(wide, made):
    cache = PromptCache()
    for question in "ab":
        generate(*wide, question, [IMAGE, IMAGE], max_tokens=2, prompt_cache=cache)
    assert made == {"square": 4, "image_fingerprint": 4}
