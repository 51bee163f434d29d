"""Decisions among given answers: each choice scored as a full forward pass scores it."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_fastvlm import VisionCache, batch_decide, decide, load
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation import choices
from tests.support.images import IMAGE
from tests.support.models import wide_model

# Of one token and of many, that share beginnings, that are beginnings of others, and that end within a character.
CHOICES = ["a", "ab", "abc", "abd", "b", "Yes, it is.", "Yes, it is. Really.", "Yes", "é", "日本", "日", "🎈!", " a"]
NEAR = {"rel": 1e-6, "abs": 1e-5}  # a choice's score is a sum in float32, of as many tokens as it has


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def brute_force(model, processor, question, image, choice):
    """The log-probability of a choice's tokens behind the prompt, by one pass over both."""
    messages = [{"role": "user", "content": ("<image>\n" if image else "") + question}]
    ids, answer = processor.encode_chat(messages), processor.encode_answer(choice)
    pixels = processor.preprocess(image) if image else None
    logits = model(mx.array([ids + answer]), pixels).logits[0].astype(mx.float32)
    logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)
    return sum(logprobs[len(ids) - 1 + i, id] for i, id in enumerate(answer))


@pytest.mark.parametrize("image", [None, IMAGE])
@pytest.mark.parametrize("limits", [(256, 16), (4, 2), (1, 1)])
def test_each_choice_is_scored_as_by_a_full_pass(wide, image, limits, monkeypatch):
    monkeypatch.setattr(choices, "TOKENS", limits[0])
    monkeypatch.setattr(choices, "ROWS", limits[1])
    found = decide(*wide, "What is this?", image, choices=CHOICES)
    expected = {choice: brute_force(*wide, "What is this?", image, choice) for choice in CHOICES}
    assert found.logprobs == pytest.approx(expected, **NEAR)
    assert math.isclose(sum(found.probabilities.values()), 1)
    assert found.choice == max(found.probabilities, key=found.probabilities.get)


def test_in_a_batch_as_alone(wide):
    questions, images = ["a", "What is this?", "b", "a"], [None, IMAGE, [IMAGE, Image.new("RGB", (9, 9))], IMAGE]
    together = batch_decide(*wide, questions, images, choices=CHOICES, batch_size=3)
    for question, image, found in zip(questions, images, together):
        assert decide(*wide, question, image, choices=CHOICES).logprobs == pytest.approx(found.logprobs, **NEAR)
    assert batch_decide(*wide, [], choices=["a", "b"]) == []


@settings(max_examples=40)
@given(lengths=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=2, max_size=8, unique_by=tuple))
def test_probabilities_are_those_of_what_answers_begin_with(lengths):
    """Against a sum over all answers of four tokens from a small vocabulary: each counts for its longest choice."""
    random = np.random.RandomState(len(lengths))
    tables = {}

    def next_token(before):
        return tables.setdefault(before, random.dirichlet(np.ones(3)))

    def probability(ids):
        return math.prod(next_token(ids[:i])[id] for i, id in enumerate(ids))

    tokens = [tuple(ids) for ids in lengths]
    names = [str(ids) for ids in tokens]
    found = choices._decision(names, tokens, [math.log(probability(ids)) for ids in tokens])
    counted = dict.fromkeys(names, 0.0)
    for answer in np.ndindex(3, 3, 3, 3):
        begun = [ids for ids in tokens if answer[: len(ids)] == ids]
        if begun:
            counted[str(max(begun, key=len))] += probability(answer)
    total = sum(counted.values())
    assert found.probabilities == pytest.approx({name: value / total for name, value in counted.items()}, abs=1e-9)


def test_the_demo_knows_yes_from_no():
    model, processor = load("demo")
    star = Image.open("examples/images/shapes-1.png")
    found = decide(model, processor, "Is there a blue star?", star, choices=["Yes", "No"], vision_cache=VisionCache())
    assert found.choice == "Yes"
    assert found.probabilities["Yes"] > 0.9


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["yes"], "a list of two texts or more"),
        ("yes", "a list of two texts or more"),
        (["yes", 1], "a list of two texts or more"),
        (["yes", ""], "must not hold an empty text"),
        (["yes", "no", "yes"], "one is the same as 'yes'"),
        (["yes", "\ud800"], "not valid Unicode"),
    ],
)
def test_impossible_choices(wide, choices, message):
    with pytest.raises(ValueError, match=message):
        decide(*wide, "a", choices=choices)


def test_what_a_decision_can_not_be_told(wide):
    with pytest.raises(TypeError, match="no option temperature; it has system"):
        decide(*wide, "a", choices=["a", "b"], temperature=1.0)
    with pytest.raises(UsageError, match="frames must be at least 1"):
        decide(*wide, "a", choices=["a", "b"], frames=0)
    with pytest.raises(ValueError, match="2 questions and images for 1"):
        batch_decide(*wide, ["a", "b"], [None], choices=["a", "b"])


def test_ten_thousand_choices(wide):
    choices = [f"number {i}" for i in range(10_000)]
    found = decide(*wide, "a", choices=choices)
    assert math.isclose(sum(found.probabilities.values()), 1)
    some = [choices[i] for i in (0, 1, 77, 9_999)]
    assert [found.logprobs[c] for c in some] == pytest.approx(
        [brute_force(*wide, "a", None, c) for c in some], abs=1e-4
    )
