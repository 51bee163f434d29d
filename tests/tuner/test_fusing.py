"""Fused, a model computes what it did with its adapters."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmForConditionalGeneration
from mlx_fastvlm.models.forms import PLAIN
from mlx_fastvlm.models.lora import adapters_of
from mlx_fastvlm.tuner.fusing import fuse_adapters
from tests.support.adapters import adapted, logits, new_model


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("head", ["tied", "own"])
@pytest.mark.parametrize("bits", [None, 4])
def test_fused_is_adapted(checkpoint, tmp_path, kind, head, bits):
    folder = checkpoint("apple") if head == "tied" else checkpoint("apple", head="own")
    keys = {"keys": ("self_attn.q_proj", "mlp.down_proj", "lm_head")} if head == "own" else {}
    model, _ = adapted(folder, kind, bits, projector=True, vision=True, **keys)
    expected = logits(model)
    names = fuse_adapters(model, dequantize=bits is not None)
    assert ("lm_head" in names) == (head == "own")
    assert not adapters_of(model)
    assert mx.abs(logits(model) - expected).max() <= 1e-5 * expected.std()
    assert not any(name.endswith("scales") for name, _ in tree_flatten(model.parameters()))
    model.save_pretrained(tmp_path / "fused")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "fused", dtype="float32")
    assert mx.abs(logits(again) - expected).max() <= 1e-5 * expected.std()


def test_layers_keep_their_forms(checkpoint):
    model, _ = adapted(checkpoint("apple"))
    fuse_adapters(model)
    fresh = new_model(checkpoint("apple"))
    assert {type(layer) for layer in model.modules()} == {type(layer) for layer in fresh.modules()}
    assert {type(layer) for layer in model.modules()} & PLAIN.keys()


def test_into_a_quantized_base_is_refused(checkpoint):
    model, _ = adapted(checkpoint("apple"), bits=4)
    before = logits(model)
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.down_proj is quantized, .*--dequantize"):
        fuse_adapters(model)
    assert mx.array_equal(logits(model), before)
