"""Fused, a model computes what it did with its adapters."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmForConditionalGeneration, load
from mlx_fastvlm.checkpoints.targets import LAYOUTS
from mlx_fastvlm.models.forms import PLAIN
from mlx_fastvlm.models.lora import adapters_of
from mlx_fastvlm.tuner.fusing import fuse_adapters, lost_by_rounding
from tests.support.adapters import IDS, adapted, logits, new_model, pixels


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("head", ["tied", "own"])
@pytest.mark.parametrize("bits", [None, 4])
def test_fused_is_adapted_in_each_layout(checkpoint, tmp_path, layout, kind, head, bits):
    """Written and loaded again: of a plain base and of one that was unpacked, with either head."""
    folder = checkpoint("apple") if head == "tied" else checkpoint("apple", head="own")
    model, _ = adapted(folder, kind, bits, projector=True, vision=True, embeddings=True)
    expected = logits(model)
    fuse_adapters(model, dequantize=bits is not None)
    _, processor = load(folder)
    model.save_pretrained(tmp_path / "fused", layout=layout, processor=processor)
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "fused", dtype="float32")
    ids = mx.where(model.config.image_token_id == IDS, again.config.image_token_id, IDS)
    found = again(ids, pixels()).logits[..., : expected.shape[-1]]
    assert ("lm_head" in again) == (head == "own")
    assert mx.abs(found - expected).max() <= 1e-5 * expected.std()


def test_layers_keep_their_forms(checkpoint):
    model, _ = adapted(checkpoint("apple"))
    fuse_adapters(model)
    fresh = new_model(checkpoint("apple"))
    assert {type(layer) for layer in model.modules()} == {type(layer) for layer in fresh.modules()}
    assert {type(layer) for layer in model.modules()} & PLAIN.keys()


def test_what_rounding_would_lose_is_refused(checkpoint):
    """A small adapter in 4 bits, unless forced; not one in 8 bits that says more than rounding takes."""
    model, _ = adapted(checkpoint("apple"), bits=4)
    before = logits(model)
    with pytest.raises(ValueError, match=r"would lose \d+% of the adapters; .*--dequantize.*--force"):
        fuse_adapters(model)
    assert mx.array_equal(logits(model), before)
    lost = lost_by_rounding(model)
    assert lost > 0.25
    fuse_adapters(model, force=True)
    assert not adapters_of(model)
    assert any(name.endswith("scales") for name, _ in tree_flatten(model.parameters()))
    changed = mx.abs(logits(model) - before).max()
    assert 0 < changed < before.std()


def test_into_a_quantized_base(checkpoint):
    model, _ = adapted(checkpoint("apple"), bits=8, scale=30.0, embeddings=True)
    expected = logits(model)
    assert 0 < lost_by_rounding(model) < 0.25
    names = fuse_adapters(model)
    assert "language_model.embed_tokens" in names
    named = dict(model.named_modules())
    assert all("scales" in named[name] for name in names)
    assert mx.abs(logits(model) - expected).max() <= 0.2 * expected.std()


def test_nothing_is_lost_in_a_plain_base(checkpoint):
    assert lost_by_rounding(adapted(checkpoint("apple"))[0]) == 0
