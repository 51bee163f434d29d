"""A Mac's wired limit around generation, with Metal played by four functions."""

import gc

import mlx.core as mx
import pytest

from mlx_fastvlm import Engine, generate
from mlx_fastvlm.models import wired
from tests.support.images import PROMPT
from tests.support.models import wide_model

LIMIT = 10 * wired.BESIDE


@pytest.fixture
def limits(monkeypatch):
    """All limits that were set; before anything it was 7."""
    values = [7]

    def set_limit(value):
        values.append(value)
        return values[-2]

    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": LIMIT})
    monkeypatch.setattr(wired, "_on_gpu", lambda: True)
    return values


def size(model):
    return sum(x.nbytes for _, x in wired.tree_flatten(model.parameters()))


def test_an_answer_wires_the_weights_and_restores_what_was(limits):
    model, processor = wide_model()
    generate(model, processor, PROMPT, max_tokens=3)
    assert limits == [7, size(model) + wired.BESIDE, 7]


def test_no_more_than_metal_recommends(limits, monkeypatch):
    model, processor = wide_model()
    monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": 1000})
    generate(model, processor, PROMPT, max_tokens=1)
    assert limits == [7, 1000, 7]


def test_two_engines_of_a_model_wire_it_once(limits):
    model, processor = wide_model()
    first, second = Engine(model, processor), Engine(model, processor)
    answers = [engine.submit(PROMPT, max_tokens=3) for engine in (first, second)]
    next(answers[0]), next(answers[1])
    answers[0].close()
    assert set(limits[1:]) == {size(model) + wired.BESIDE}
    list(answers[1])
    assert limits[-1] == 7


def test_an_engine_that_is_dropped_lets_go(limits):
    model, processor = wide_model()
    answer = Engine(model, processor).submit(PROMPT, max_tokens=9)
    next(answer)
    assert limits[-1] != 7
    del answer
    gc.collect()
    assert limits[-1] == 7


def test_nothing_is_wired_where_there_is_no_metal(monkeypatch):
    model, processor = wide_model()
    monkeypatch.setattr(mx, "set_wired_limit", lambda _: pytest.fail("there is no Metal here"))
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert generate(model, processor, PROMPT, max_tokens=1)
