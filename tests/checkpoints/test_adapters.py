"""What load would refuse is not saved."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from mlx_fastvlm import FastVlmForConditionalGeneration, load


def test_adapters_are_fused_before_saving(checkpoint, tmp_path):
    mx.random.seed(0)
    model, _ = load(checkpoint("apple"), dtype="float32")
    attention = model.language_model.layers[0].self_attn
    attention.q_proj = LoRALinear.from_base(attention.q_proj, r=2)
    attention.q_proj.lora_b = mx.random.normal(attention.q_proj.lora_b.shape)
    with pytest.raises(ValueError, match=r"q_proj\.linear\.weight.*; fuse the adapters into") as raised:
        model.save_pretrained(tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    expected = model(mx.array([[1, 2, 3]])).logits
    fused = [(name, layer.fuse()) for name, layer in model.named_modules() if isinstance(layer, LoRALinear)]
    model.update_modules(tree_unflatten(fused))
    model.save_pretrained(tmp_path / "out")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="float32")
    difference = mx.abs(again(mx.array([[1, 2, 3]])).logits - expected).max() / mx.std(expected)
    assert difference <= 1e-5


def test_layers_that_the_config_does_not_describe(checkpoint, tmp_path):
    model, _ = load(checkpoint("apple"))
    model.set_input_embeddings(nn.Embedding(400, 64))
    with pytest.raises(ValueError, match=r"1 parameters are not as .* \(language_model\.embed_tokens\.weight\)"):
        model.save_pretrained(tmp_path / "out")
    model, _ = load(checkpoint("apple"))
    model.language_model.layers.pop()
    with pytest.raises(ValueError, match="are not as the model's config says"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
