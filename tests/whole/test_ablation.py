"""What benchmarks/ablation.py puts in the place of a kernel computes the same."""

import mlx.core as mx
import pytest

from mlx_fastvlm.models import cpu_ops
from tests.support.differences import deviations
from tests.support.scripts import load_script

ABLATION = load_script("benchmarks/ablation.py")
PIXELS = 320  # more than one band, and an image whose last band is a shorter one


@pytest.fixture(scope="module")
def tower(demo):
    return demo[0].vision_tower


@pytest.mark.parametrize("row", ABLATION.TOWER)
def test_a_towers_row_computes_the_same(tower, monkeypatch, row):
    monkeypatch.setattr(cpu_ops, "PIECE", 2**14)
    x = mx.random.uniform(shape=(1, PIXELS, PIXELS, 3), key=mx.random.key(0))
    expected = tower(x).last_hidden_state
    mx.eval(expected)
    for name, plain in ABLATION.TOWER[row].items():
        monkeypatch.setattr(cpu_ops, name, plain)
    assert deviations(tower(x).last_hidden_state, expected) <= 1e-4
