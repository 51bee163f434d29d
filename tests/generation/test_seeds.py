"""Sampling without a seed: MLX's generator decides in the main thread, chance in every other."""

import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from mlx_fastvlm import batch_generate, generate
from tests.support.models import wide_model
from tests.support.paths import ROOT

HOT = {"temperature": 5.0, "max_tokens": 12}


@pytest.fixture
def wide():
    return wide_model()


def from_threads(count, function):
    """What so many threads give, each the first thing that it does."""
    results = []
    for _ in range(count):
        thread = threading.Thread(target=lambda: results.append(function()))
        thread.start()
        thread.join()
    return results


def test_threads_do_not_repeat_each_other(wide):
    answers = from_threads(5, lambda: generate(*wide, "a", **HOT))
    assert len(set(answers)) == 5
    batches = from_threads(3, lambda: tuple(batch_generate(*wide, ["a", "a"], **HOT)))
    assert len({text for batch in batches for text in batch}) == 6


def test_a_seed_rules_in_every_thread(wide):
    expected = generate(*wide, "a", seed=7, **HOT)
    assert from_threads(3, lambda: generate(*wide, "a", seed=7, **HOT)) == [expected] * 3


def test_mlx_rules_in_the_main_thread_whatever_others_do(wide):
    mx.random.seed(3)
    expected = [generate(*wide, "a", **HOT) for _ in range(2)]
    assert expected[0] != expected[1]
    mx.random.seed(3)
    again = []
    for _ in range(2):
        from_threads(2, lambda: generate(*wide, "a", **HOT))
        again.append(generate(*wide, "a", **HOT))
    assert again == expected


SAMPLE = """
from mlx_fastvlm import generate
from tests.support.models import wide_model
model, processor = wide_model()
import mlx.core as mx, threading
{how}
"""


def test_processes_do_not_repeat_each_other_in_threads():
    how = "threading.Thread(target=lambda: print(ascii(generate(model, processor, 'a', temperature=5.0)))).start()"
    command = [sys.executable, "-c", SAMPLE.format(how=how)]
    one, other = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout for _ in range(2))
    assert one != other
    assert one.strip()
