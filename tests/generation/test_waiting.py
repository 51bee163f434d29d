"""From an image to the first token, Python waits for nothing that a device computes."""

import mlx.core as mx
import pytest

from mlx_fastvlm import Engine, VisionCache
from mlx_fastvlm.models import fastvlm
from tests.support.images import IMAGE, PROMPT
from tests.support.models import wide_model

pytestmark = pytest.mark.gpu


def test_nothing_waits_between_an_image_and_its_first_token(monkeypatch):
    """A value that is read leaves the device idle until the next work has been made ready."""
    model, processor = wide_model()
    cache = VisionCache()
    engine = Engine(model, processor, vision_cache=cache)
    engine.submit(PROMPT, IMAGE, max_tokens=2)
    waits = []
    monkeypatch.setattr(mx, "eval", lambda *_: waits.append("eval"))
    monkeypatch.setattr(mx, "synchronize", lambda *_: waits.append("synchronize"))
    monkeypatch.setattr(fastvlm, "check_count", lambda *_: waits.append("item"))
    engine.step()
    assert len(cache) == 0  # what is not computed yet is no other thread's to take
    engine.step()
    (row,) = engine._rows
    assert row.produced == 1
    assert waits == []
    assert len(cache) == 1


def test_what_was_never_computed_is_not_kept():
    model, processor = wide_model()
    cache = VisionCache()
    engine = Engine(model, processor, vision_cache=cache)
    answer = engine.submit(PROMPT, IMAGE, max_tokens=2)
    engine.step()
    answer.close()
    assert len(cache) == 0
