"""The demo answers at every size that its config says it was trained on."""

from random import Random

import pytest

from mlx_fastvlm import FastVlmConfig, batch_generate, load
from tests.support.scripts import load_script

SIZES = FastVlmConfig.from_pretrained("demo").trained_image_sizes
QUESTIONS = 24


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture(scope="module")
def asked():
    """First questions about held-out scenes."""
    script = load_script("examples/demo/scenes.py")
    made = [script.make_scene(seed) for seed in script.HELD_OUT_SEEDS[:QUESTIONS]]
    return [(script.questions(scene, Random(scene.seed), 1)[0], script.draw(scene, 512)) for scene in made]


def count_right(demo, asked, size):
    texts, images = [question.text for question, _ in asked], [image for _, image in asked]
    said = batch_generate(*demo, texts, images, image_size=size, max_tokens=48)
    return sum(answer == question.answer for answer, (question, _) in zip(said, asked))


def test_they_are_several():
    assert {256, 512} < set(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_the_demo_answers_at_a_size_it_was_trained_on(demo, asked, size):
    """96% of 500 at the smallest (docs/demo.md): fewer than three in four here would be another model."""
    assert count_right(demo, asked, size) > 0.75 * QUESTIONS


def test_at_a_size_it_was_not_trained_on_it_does_not(demo, asked):
    """So the test above can fail."""
    assert count_right(demo, asked, 64) < 0.75 * QUESTIONS
