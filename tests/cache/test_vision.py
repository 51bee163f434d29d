"""Images go through the tower a few at a time, and once."""

import dataclasses

import mlx.core as mx
import pytest
from PIL import Image

from mlx_fastvlm import VisionCache, generate, load
from tests.support.images import IMAGE, PROMPT

pytestmark = pytest.mark.gpu

OTHER = Image.new("RGB", (40, 60), "white")


@pytest.fixture
def tower_calls(untied_model, monkeypatch):
    """How many images went through the tower at each call."""
    calls = []
    encode = type(untied_model[0]).get_image_features
    monkeypatch.setattr(
        type(untied_model[0]), "get_image_features", lambda self, x: calls.append(len(x)) or encode(self, x)
    )
    return calls


def test_images_go_through_the_tower_in_small_groups(ask, tower_calls):
    images = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in range(0, 200, 40)]
    one = ask(image=images)
    assert tower_calls == [1] * 5
    assert ask(image=images, vision_batch_size=2) == one
    assert tower_calls[5:] == [2, 2, 1]


def test_a_vision_cache_goes_by_pixels(ask, tower_calls, tmp_path):
    """Neither by the file's name, nor by its bytes without their shape."""
    cache, path = VisionCache(), tmp_path / "image.png"
    IMAGE.save(path)
    first = ask(image=str(path), vision_cache=cache)
    assert ask(image=IMAGE, vision_cache=cache) == first
    assert (tower_calls, cache.hits, cache.misses) == ([1], 1, 1)
    OTHER.save(path)
    assert ask(image=str(path), vision_cache=cache) == ask(image=OTHER)
    calls = len(tower_calls)
    ask(image=IMAGE, vision_cache=cache, image_size=64)
    assert len(tower_calls) == calls + 1


def test_a_vision_cache_goes_by_model(checkpoint, tower_calls):
    cache = VisionCache()
    model, processor = load(checkpoint("apple", head="own"))
    generate(model, processor, PROMPT, IMAGE, vision_cache=cache, max_tokens=1)
    model.multi_modal_projector.linear_2.bias = model.multi_modal_projector.linear_2.bias + 1
    generate(model, processor, PROMPT, IMAGE, vision_cache=cache, max_tokens=1)
    assert tower_calls == [1, 1]
    settings = dataclasses.replace(processor.image_settings, mean=(0.5, 0.5, 0.5))
    generate(model, dataclasses.replace(processor, image_settings=settings), "a", IMAGE, vision_cache=cache)
    assert tower_calls == [1, 1, 1]


def test_a_vision_cache_is_bounded_and_forgets_the_longest_unused(ask, tower_calls):
    colours = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    one = 4 * 64 * 4  # tokens of an image, hidden size, bytes of a float
    cache = VisionCache(max_bytes=2 * one)
    for image in (colours[0], colours[1], colours[0], colours[2]):
        ask(image=image, vision_cache=cache, max_tokens=1)
    assert len(tower_calls) == 3
    assert (len(cache), cache.nbytes) == (2, 2 * one)
    ask(image=colours[0], vision_cache=cache, max_tokens=1)
    assert len(tower_calls) == 3
    ask(image=colours[1], vision_cache=cache, max_tokens=1)
    assert len(tower_calls) == 4
    tiny = VisionCache(max_bytes=one - 1)
    ask(image=IMAGE, vision_cache=tiny, max_tokens=1)
    assert len(tiny) == 0


def test_an_image_that_comes_again_counts_once():
    cache = VisionCache(max_bytes=100)
    for size in (10, 20, 20):
        cache.put("key", mx.zeros((size,), mx.uint8))
    assert (len(cache), cache.nbytes) == (1, 20)
    cache.put("other", mx.zeros((90,), mx.uint8))
    assert (len(cache), cache.nbytes) == (1, 90)
