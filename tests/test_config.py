"""The configuration: transformers' defaults and checks, and nothing lost on a round trip."""

import json

import mlx.core as mx
import pytest

from mlx_fastvlm import FastViTHD, FastVlmConfig, TextConfig, VisionConfig
from tests.support import checkpoints, small
from tests.support.paths import REFERENCE

RECORDED = json.loads((REFERENCE / "recorded.json").read_text())

# Found in nested configs in the wild, or made up; none means anything here.
STRANGE = {"made_up": {"deep": [1, None, {"x": 2}]}, "label_names": ["a", "b"], "max_window_layers": 3}


def test_defaults_are_transformers():
    """FastVLM-7B's, with timm's wrapper for the tower and nested rope parameters."""
    theirs = RECORDED["default_config"]
    ours = FastVlmConfig().to_dict()
    assert FastVlmConfig.from_dict(theirs) == FastVlmConfig(extra=theirs)
    plain = (
        "model_type",
        "image_token_index",
        "projector_hidden_act",
        "vision_feature_select_strategy",
        "vision_feature_layer",
        "multimodal_projector_bias",
        "tie_word_embeddings",
    )
    assert {name: ours[name] for name in plain} == {name: theirs[name] for name in plain}
    nested = {name: value for name, value in ours["text_config"].items() if name in theirs["text_config"]}
    assert nested == {name: theirs["text_config"][name] for name in nested}
    assert ours["text_config"]["rope_theta"] == theirs["text_config"]["rope_parameters"]["rope_theta"]
    nested = {name: value for name, value in ours["vision_config"].items() if name != "image_size"}
    assert nested == {name: theirs["vision_config"][name] for name in nested}
    assert FastVlmConfig().image_token_index == theirs["image_token_index"]


def strange(layout):
    """The small config of a layout with unknown keys everywhere."""
    config = checkpoints.config(layout) | {"made_up": STRANGE}
    for name in ("vision_config", "text_config"):
        config[name] = {**config.get(name, {}), **STRANGE}
    if layout == "transformers":
        config["vision_config"]["model_args"] |= {"made_up": 1}
    return config


@pytest.mark.parametrize("layout", ["transformers", "apple"])
def test_unknown_keys_survive(layout):
    first = FastVlmConfig.from_dict(strange(layout))
    written = first.to_dict()
    for found in (written["vision_config"], written["text_config"], written["made_up"]):
        assert found.items() >= STRANGE.items()
    assert written["vision_config"]["model_args"].get("made_up") == (1 if layout == "transformers" else None)
    second = FastVlmConfig.from_dict(json.loads(json.dumps(written)))
    assert second.to_dict() == written
    parts = ("vision_config", "text_config", "image_token_id", "tie_word_embeddings", "eos_token_id")
    assert [getattr(second, part) for part in parts] == [getattr(first, part) for part in parts]


def test_what_is_known_wins_over_what_was_read():
    config = FastVlmConfig.from_dict(strange("transformers"))
    config.text_config.vocab_size = 999
    config.text_config.rope_theta = 5.0
    config.vision_config.layers = [2, 2, 2, 2, 2]
    config.vision_config.image_size = 256
    written = FastVlmConfig.from_dict(config.to_dict())
    assert (written.text_config.vocab_size, written.text_config.rope_theta) == (999, 5.0)
    assert written.vision_config == config.vision_config


def test_nested_configs_as_dicts_or_objects():
    config = FastVlmConfig(small.VISION, {**small.TEXT, "made_up": 1})
    assert config.text_config == TextConfig(**small.TEXT)
    assert config.vision_config == VisionConfig(**small.VISION)
    assert config.to_dict()["text_config"]["made_up"] == 1


def test_save_and_from_pretrained(tmp_path):
    config = FastVlmConfig.from_dict(strange("apple"))
    config.save_pretrained(tmp_path / "new" / "folder")
    read = FastVlmConfig.from_pretrained(tmp_path / "new" / "folder")
    assert read.to_dict() == config.to_dict()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        FastVlmConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a hub id"):
        FastVlmConfig.from_pretrained(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp2x_relu", "resampler", "mlp2x_gelu.0"])
def test_unknown_projectors(kind):
    with pytest.raises(ValueError, match="mm_projector_type"):
        FastVlmConfig.from_dict({"model_type": "llava_qwen2", "mm_projector_type": kind})


def test_an_identity_needs_equal_widths():
    with pytest.raises(ValueError, match="'identity' does not lead from 512 image channels to 64"):
        FastVlmConfig.from_dict({**checkpoints.apple_config(), "mm_projector_type": "identity"})
    same = {**checkpoints.apple_config(), "mm_projector_type": "identity", "hidden_size": 512}
    assert FastVlmConfig.from_dict(same).projector_layers == 0


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": [1, 1, 1, 1]},
        {"embed_dims": [16, 40, 80, 160, 320]},
        {"embed_dims": [8, 16, 32, 40, 80]},
        {"token_mixers": ["pool"] * 5},
        {"image_size": 1000},
        {"cls_ratio": 3},
        {"architecture": "resnet50"},
    ],
)
def test_impossible_towers_are_refused(vision):
    with pytest.raises(ValueError, match=r"vision|image_size"):
        FastVlmConfig.from_dict({"model_type": "fast_vlm", "vision_config": vision})


@pytest.mark.parametrize(
    "change",
    [
        {"vision_feature_select_strategy": "default"},
        {"vision_feature_layer": -2},
        {"image_aspect_ratio": "anyres"},
        {"trained_image_sizes": 256},
        {"trained_image_sizes": [0]},
        {"model_type": "llava"},
        {"text_config": {"hidden_act": "hardswish"}},
        {"text_config": {"attention_bias": False}},
        {"text_config": {"num_attention_heads": 5, "num_key_value_heads": 2}},
        {"text_config": {"rope_scaling": {"rope_type": "longrope"}}},
        {"vision_config": {"model_args": {"se_downsamples": [True]}}},
    ],
)
def test_unsupported_configurations_are_refused(change):
    with pytest.raises(ValueError, match=r"not|can't|must"):
        FastVlmConfig.from_dict({"model_type": "fast_vlm", **change})


def test_released_configurations(facts):
    configs = facts / "configs"
    small_one, large = (FastVlmConfig.from_file(configs / f"apple-{size}.config.json") for size in ("0.5b", "7b"))
    assert small_one.num_image_tokens == large.num_image_tokens == 256
    assert small_one.vision_config == large.vision_config == VisionConfig()
    assert (small_one.text_config.hidden_size, large.text_config.hidden_size) == (896, 3584)
    assert small_one.image_aspect_ratio == "pad"
    assert small_one.eos_token_id == [151645]
    assert small_one.tie_word_embeddings
    assert not large.tie_word_embeddings
    assert FastViTHD(VisionConfig(image_size=64)).dtype == mx.float32
