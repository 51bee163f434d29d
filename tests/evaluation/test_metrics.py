"""Metrics against the examples of their papers and scripts, and against lmms-eval's on random pairs."""

import json

import pytest

from mlx_fastvlm.evaluation.metrics import METRICS, anls, choice, exact, f1, relaxed, vqa
from mlx_fastvlm.evaluation.normalization import vqa_answer
from tests.support.paths import REFERENCE

RECORDED = json.loads((REFERENCE / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_as_lmms_eval_on_200_random_pairs(name):
    pairs = RECORDED[name]
    assert len(pairs) == 200
    assert len({score for *_, score in pairs}) > 1  # they tell metrics apart
    for prediction, answers, score in pairs:
        assert METRICS[name].score(prediction, answers) == pytest.approx(score, abs=1e-12), (prediction, answers)


@pytest.mark.parametrize(("said", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_what_so_many_of_ten_people_said(said, accuracy):
    assert vqa("yes", ["yes"] * said + ["no"] * (10 - said)) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("The Dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("wi-fi", "wi fi"),
        ("an\napple\t", "apple"),
    ],
)
def test_answers_as_vqa_compares_them(text, compared):
    assert vqa_answer(text) == compared


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("coca cola", ["coca cola"], 1),
        ("Coca   COLA", ["coca cola"], 1 - 0 / 11),
        ("cocacola", ["coca cola"], 1 - 1 / 9),
        ("cocacola", ["pepsi", "coca cola company", "coca cola"], 1 - 1 / 9),  # the closest counts
        ("coca cola company", ["coca cola"], 1 - 8 / 17),
        ("abcd", ["abxy"], 0.5),  # the script's side of the threshold
        ("abc", ["axy"], 0),
        ("", ["x"], 0),
    ],
)
def test_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("-105", "-100", True),
        ("12%", "0.12", True),
        ("12", "12%", False),
        ("0", "0", True),
        ("0.01", "0", False),
        ("Blue", "blue", True),
        ("blues", "blue", False),
        ("two", "2", False),
    ],
)
def test_relaxed_accuracy(prediction, answer, right):
    assert relaxed(prediction, [answer]) == right


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("B", True),
        ("b", True),
        (" (B) ", True),
        ("B. blue", True),
        ("B) red", True),
        ("Answer: B", True),
        ("The correct answer is (B).", True),
        ("The answer is B", True),
        ("Option B", True),
        ("Blue.", True),
        ("A", False),
        ("C. blue", False),
        ("A blue thing", False),
        ("Because", False),
        ("Both", False),
        ("", False),
    ],
)
def test_choices(prediction, right):
    assert choice(prediction, ["B", "blue"]) == right


def test_a_choice_without_a_text_is_a_letter():
    assert [choice(text, ["C"]) for text in ("C", "c.", "B", "")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("the big red heart", ["red heart"], 0.8),
        ("A red heart!", ["The red heart."], 1),
        ("heart heart", ["heart"], 2 / 3),
        ("blue", ["red", "blue star"], 2 / 3),
        ("blue", ["red"], 0),
        ("the", ["a"], 1),
        ("the", ["red"], 0),
    ],
)
def test_f1_of_words(prediction, answers, score):
    assert f1(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "right"), [("Red heart.", True), (" red HEART", True), ("a red heart", False), ("", False)]
)
def test_exact(prediction, right):
    assert exact(prediction, ["blue", "red heart"]) == right
