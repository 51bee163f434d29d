"""With the embedded checkpoint: what bounded and quantized caches do to the answers of long conversations."""

import pytest

from tests.support.scripts import load_script

RECALL = load_script("benchmarks/recall.py")

CONVERSATIONS = 16


@pytest.fixture(scope="module")
def unbounded(demo):
    return RECALL.late_answers(*demo, CONVERSATIONS)


def test_late_answers_are_right(unbounded):
    assert unbounded > 75


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_late_answers_stay_right_when_the_first_prompt_is_protected(demo, unbounded, kv_bits):
    assert RECALL.late_answers(*demo, CONVERSATIONS, bounded=True, kv_bits=kv_bits) >= unbounded - 5


def test_late_answers_fall_apart_when_it_is_not(demo, unbounded):
    assert RECALL.late_answers(*demo, CONVERSATIONS, bounded=True, protected=False) < unbounded - 25


@pytest.fixture(scope="module")
def hundred(demo):
    asked = RECALL.single_questions(100)
    return asked, RECALL.answers(*demo, asked)


@pytest.mark.parametrize(("kv_bits", "same"), [(8, 95), (4, 85)])
def test_a_quantized_cache_hardly_changes_the_answers(demo, hundred, kv_bits, same):
    asked, full = hundred
    assert sum(a == b for a, b in zip(full, RECALL.answers(*demo, asked, kv_bits=kv_bits))) >= same
