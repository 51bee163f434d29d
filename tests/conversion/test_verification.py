"""What the converter proves: that a wrong result is noticed, and what is compared."""

import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import load
from mlx_fastvlm.conversion import verification
from mlx_fastvlm.conversion.converter import convert
from mlx_fastvlm.conversion.verification import compare
from tests.support.images import IMAGE
from tests.support.paths import left


def test_verification_catches_a_wrong_result(checkpoint, tmp_path, monkeypatch):
    """As if a tensor had been mixed up on the way to the disk."""
    write_tensors = sys.modules["mlx_fastvlm.conversion.converter"].write_tensors

    def spoil(folder, tensors, **options):
        name = "language_model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name][::-1]
        return write_tensors(folder, tensors, **options)

    monkeypatch.setattr(sys.modules["mlx_fastvlm.conversion.converter"], "write_tensors", spoil)
    with pytest.raises(ValueError, match="does not compute what its source does"):
        convert(checkpoint("apple"), tmp_path / "mlx")
    assert left(tmp_path) == []
    assert convert(checkpoint("apple"), tmp_path / "mlx", verify=False).agreement is None


def test_agreement_of_known_predictions():
    a = mx.log(mx.array([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]))
    b = mx.log(mx.array([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]]))
    agreement = compare(a, b)
    assert agreement.positions == 2
    assert agreement.same_next_token == 0.5
    assert agreement.kl_divergence == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2, rel=1e-5)
    assert agreement.max_difference == pytest.approx(np.log(2) / np.array(a).std(), rel=1e-5)
    assert compare(a, a * mx.nan).max_difference == float("inf")
    with pytest.raises(ValueError, match="tokenizer"):
        compare(a, a[:1])


def test_the_golden_check_is_for_the_released_sizes(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="not for a decoder of width 64"):
        convert(checkpoint("apple"), tmp_path / "mlx", verify="golden", golden_image=IMAGE)
    assert left(tmp_path) == []


def test_the_golden_check_compares(checkpoint, monkeypatch):
    model, processor = load(checkpoint("transformers"))
    ids = processor.encode_chat([{"role": "user", "content": "<image>\nWhat are these?"}])
    values = model(mx.array([ids]), processor.preprocess(IMAGE), logits_to_keep=1).logits[0, -1, :3].tolist()
    monkeypatch.setattr(type(model.config), "num_image_tokens", 256)
    monkeypatch.setitem(verification.GOLDEN, 64, ("tiny", tuple(values)))
    assert "FastVLM-tiny, COCO image" in verification.golden(model, processor, IMAGE)
    monkeypatch.setitem(verification.GOLDEN, 64, ("tiny", (*values[:2], values[2] + 1)))
    with pytest.raises(ValueError, match="differs by more than"):
        verification.golden(model, processor, IMAGE)
