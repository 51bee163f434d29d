"""The real checkpoints' tensor names and shapes map one to one onto the model."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastViTHD, VisionConfig
from mlx_fastvlm.checkpoints import layouts
from mlx_fastvlm.checkpoints.reparameterize import reparameterize_tower
from mlx_fastvlm.config import FastVlmConfig
from mlx_fastvlm.models.fastvlm import FastVlmForConditionalGeneration

SIZES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}


def real_config(facts, layout, size):
    if layout != "hf-transformers" and size != "1.5b":
        return FastVlmConfig.from_file(facts / "configs" / f"apple-{size}.config.json")
    text = {**SIZES[size], "num_key_value_heads": 4 if size == "7b" else 2, "rope_theta": 1e6}
    text["vocab_size"] = {"hf-transformers": {"7b": 152128}.get(size, 152000)}.get(layout, 151936)
    if layout == "hf-transformers":
        return FastVlmConfig.from_dict({"model_type": "fast_vlm", "text_config": text})
    return FastVlmConfig.from_dict({"model_type": "llava_qwen2", **text})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["apple", "hf-transformers", "mlxvlm"])
def test_real_names_and_shapes(facts, released_shapes, layout, size):
    shapes = released_shapes[f"{layout}-{size}"]
    config = real_config(facts, layout, size)
    config.tie_word_embeddings = size != "7b"
    found = layouts.detect(shapes)
    names = layouts.canonical_names(found, shapes, config.vision_config)
    assert len(set(names.values())) == len(names)
    tensors = {}
    for old, new in names.items():
        shape = shapes[old]
        if not found.channels_last and len(shape) == 4:
            shape = [shape[0], *shape[2:], shape[1]]
        tensors[new] = mx.zeros(shape)  # lazy: nothing is allocated
    fused = reparameterize_tower(
        {n.removeprefix("vision_tower."): t for n, t in tensors.items() if n.startswith("vision_tower.")},
        config.vision_config,
    )
    assert [fused.missing, fused.unexpected, fused.misshapen] == [[], [], []]
    result = {n: t for n, t in tensors.items() if not n.startswith("vision_tower.")}
    if size != "7b":
        result.pop("lm_head.weight", None)  # a tied file's copy
    result |= {f"vision_tower.{name}": tensor for name, tensor in fused.tensors.items()}
    expected = dict(tree_flatten(FastVlmForConditionalGeneration(config).parameters()))
    assert {n: t.shape for n, t in result.items()} == {n: t.shape for n, t in expected.items()}


def test_real_training_form(released_shapes):
    shapes = released_shapes["apple-training-form-small"]
    vision = {"layers": [1, 2, 1, 1, 1], "embed_dims": [16, 32, 64, 128, 256]}
    config = FastVlmConfig.from_dict(
        {"model_type": "llava_qwen2", "mm_hidden_size": 512, "vision_config": vision}
    ).vision_config
    names = layouts.canonical_names(layouts.detect(shapes), shapes, config)
    tower = {
        new.removeprefix("vision_tower."): mx.zeros(
            [shapes[old][i] for i in (0, 2, 3, 1)] if len(shapes[old]) == 4 else shapes[old]
        )
        for old, new in names.items()
        if new.startswith("vision_tower.")
    }
    fused = reparameterize_tower(tower, config)
    assert [fused.missing, fused.unexpected, fused.misshapen] == [[], [], []]


def test_the_tower_has_125_million_parameters():
    parameters = tree_flatten(FastViTHD(VisionConfig()).parameters())
    head = 3072 * 768  # CLIP's projection, which the published count includes and FastVLM has no use for
    assert sum(array.size for _, array in parameters) + head == pytest.approx(125e6, rel=1e-3)
