"""A short run of the fuzzer: some 20 seconds, the same inputs every time."""

import fuzz
import pytest

INPUTS = {"pictures": 1500, "prompts": 400, "config": 250, "tokenizer": 500, "tensors": 120}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_nothing_but_clear_errors(target):
    found = fuzz.fuzz(target, inputs=INPUTS[target], seed=1)
    assert found.keys() <= {"read", "refused"}
    assert min(found["read"], found["refused"]) > 0  # else the inputs test nothing
