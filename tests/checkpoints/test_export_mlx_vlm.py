"""The layout of mlx-vlm and mlx-swift-lm: what mlx-vlm computed from it, what the two read, and what is refused."""

import json
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, convert
from mlx_fastvlm.checkpoints.export_mlx_vlm import CHAT_TEMPLATE, mlx_vlm_form
from mlx_fastvlm.processing.template import DEFAULT_TEMPLATE
from tests.support import small
from tests.support.differences import deviations
from tests.support.paths import REFERENCE
from tests.support.reference import mlx_vlm

RECORDED = json.loads((REFERENCE / "mlx_vlm.json").read_text())
# What mlx-swift-lm's configurations decode without a default.
SWIFT = {
    "": "model_type eos_token_id mm_projector_type mm_hidden_size tokenizer_model_max_length tokenizer_padding_side "
    "hidden_size num_hidden_layers intermediate_size num_attention_heads vocab_size",
    "vision_config": "cls_ratio down_patch_size down_stride downsamples embed_dims hidden_size image_size layers "
    "intermediate_size layer_scale_init_value mlp_ratios num_classes patch_size pos_embs_shapes projection_dim "
    "repmixer_kernel_size token_mixers",
}


@pytest.mark.parametrize("case", sorted(RECORDED))
def test_mlx_vlm_computes_the_same_from_an_export(checkpoint, tmp_path, case):
    """Its logits and its text, from the export that its script loaded."""
    name, how = case.rsplit(", ", 1)
    source = "demo" if name == "demo" else checkpoint("apple", **({"head": "own"} if "untied" in name else {}))
    options = {"quantize": True, "q_group_size": 32} if how == "4 bits" else {}
    convert(source, tmp_path / "out", layout="mlx-vlm", dtype="float32", verify=False, **options)
    logits, text = mlx_vlm.ours(tmp_path / "out")
    assert deviations(small.sample(logits), np.array(RECORDED[case]["logits"])) < 1e-4
    assert RECORDED[case]["text"] in (None, text)


@pytest.mark.parametrize("head", [None, "own"])
def test_names_and_shapes(checkpoint, tmp_path, head):
    """Those of the layout that the tests write by hand, and head.proj, which nobody reads."""
    convert(checkpoint("mlx-vlm", head=head), tmp_path / "out", layout="mlx-vlm", verify=False)
    shapes, expected = (
        {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (tmp_path / "out", checkpoint("mlx-vlm", head=head))
    )
    assert shapes.pop("vision_tower.vision_model.head.proj") == (512, 768)
    expected.pop("vision_tower.vision_model.head.proj")
    assert shapes == expected


def test_released_names(facts, released_shapes):
    """Those of mlx-community's FastVLM-0.5B, from the names alone."""
    config = FastVlmConfig.from_file(facts / "configs" / "apple-0.5b.config.json")
    expected = released_shapes["mlxvlm-0.5b"]
    model = FastVlmForConditionalGeneration(config)
    tensors = mlx_vlm_form(dict(tree_flatten(model.parameters())), config)
    ours = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert {name: ours.get(name) for name in expected} == expected
    assert ours.keys() - expected.keys() <= {"vision_tower.vision_model.head.proj"}


def test_what_mlx_swift_lm_reads(checkpoint, tmp_path):
    convert(checkpoint("transformers"), tmp_path / "out", layout="mlx-vlm", quantize=True, q_group_size=32)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for place, names in SWIFT.items():
        assert set(names.split()) <= (config[place] if place else config).keys()
    assert (config["model_type"], config["image_token_index"], config["eos_token_id"]) == ("llava_qwen2", -200, 258)
    assert all(isinstance(ratio, int) for ratio in config["vision_config"]["mlp_ratios"])
    assert config["image_aspect_ratio"] == "pad"  # both do, whatever the source did
    images = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert images["processor_class"] == "FastVLMProcessor"
    assert images["crop_size"] == {"height": 128, "width": 128}
    # mlx-lm's entry: the common settings, and each module's own under its name in the file.
    assert config["quantization"] == config["quantization_config"]
    assert {key: config["quantization"][key] for key in ("group_size", "bits", "mode")} == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
    }
    modules = {name for name, how in config["quantization"].items() if isinstance(how, dict)}
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert modules == {name.removesuffix(".scales") for name in names if name.endswith(".scales")}
    assert all(name.startswith("language_model.model.") for name in modules)


def test_the_template_takes_texts_and_parts(processor):
    text = [{"role": "user", "content": "<image>\nWhat?"}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    said = replace(processor, chat_template=DEFAULT_TEMPLATE).apply_chat_template(text)
    ours = replace(processor, chat_template=CHAT_TEMPLATE)
    assert ours.apply_chat_template(text) == ours.apply_chat_template(parts) == said


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ({"head_dim": 32}, {}, "head_dim 32"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, {}, "sliding_window 4"),
        ({}, {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
    ],
    ids=["head_dim", "sliding_window", "projector"],
)
def test_what_they_do_not_compute(tmp_path, text, options, said):
    model = FastVlmForConditionalGeneration(FastVlmConfig(small.VISION, {**small.TEXT, **text}, **options))
    with pytest.raises(ValueError, match=said):
        model.save_pretrained(tmp_path / "x", layout="mlx-vlm")
    assert not (tmp_path / "x").exists()


def test_a_quantized_projector_is_refused(tmp_path):
    model = FastVlmForConditionalGeneration(FastVlmConfig(small.VISION, small.TEXT))
    nn.quantize(model, group_size=32, class_predicate=lambda path, _: path.startswith("multi_modal_projector.linear"))
    with pytest.raises(ValueError, match="full precision"):
        model.save_pretrained(tmp_path / "x", layout="mlx-vlm")


@pytest.mark.parametrize("kind", ["linear", "mlp3x_gelu", "no biases"])
def test_save_pretrained_and_back(tmp_path, kind):
    """Projectors of another depth; and without biases, which become zeros there."""
    options = {"multimodal_projector_bias": False} if kind == "no biases" else {"projector_type": kind}
    mx.random.seed(1)
    model = FastVlmForConditionalGeneration(
        FastVlmConfig(small.VISION, small.TEXT, image_token_id=-200, image_aspect_ratio="pad", **options)
    )
    model.save_pretrained(tmp_path / "x", layout="mlx-vlm")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "x", dtype="float32")
    inputs = mx.array([[1, *[-200] * 6, 2]]), mx.random.uniform(shape=(1, 128, 192, 3))
    assert deviations(again(*inputs).logits, np.array(model(*inputs).logits)) < 1e-5
