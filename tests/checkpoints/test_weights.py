"""Tensors that contradict each other, and a checkpoint without a head."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, load
from tests.support import checkpoints, small
from tests.support.checkpoints import apple_config, config, packed, small_tensors, write
from tests.support.models import logits

UP = "model.layers.0.mlp.up_proj"


def quantized(folder):
    """A small checkpoint in Apple's layout, one of its layers quantized."""
    folder = write(folder, config_dict=apple_config() | {"quantization": {"bits": 4, "group_size": 32}})
    tensors = load_file(folder / "model.safetensors")
    save_file(packed(tensors, lambda name, _: name == f"{UP}.weight", bits=4), folder / "model.safetensors")
    load(folder)
    return folder


def drop_biases(tensors):
    del tensors[f"{UP}.biases"]


# What is done to the tensors, and words of the one error.
FAULTS = {
    "scales of no weight": (lambda t: t.update({"model.layers.0.mlp.foo.scales": ONE}), "1 unexpected"),
    "scales of a head that is not there": (lambda t: t.update({"lm_head.scales": ONE}), "1 missing .lm_head.weight"),
    "scales of nothing": (lambda t: t.update({".scales": ONE}), "1 unexpected"),
    "no groups": (lambda t: t.update({f"{UP}.scales": np.zeros((160, 0), np.float32)}), "not a matrix quantized"),
    "a number": (lambda t: t.update({f"{UP}.scales": np.array(1, np.float32)}), "not a matrix quantized"),
    "other rows": (lambda t: t.update({f"{UP}.scales": np.ones((80, 2), np.float32)}), "not a matrix quantized"),
    "a plain weight": (lambda t: t.update({f"{UP}.weight": np.ones((160, 8), np.float32)}), "not a matrix quantized"),
    "no biases": (drop_biases, "biases missing"),
}
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize("fault", FAULTS)
def test_quantized_tensors_that_make_no_sense_are_one_line(tmp_path, fault):
    change, message = FAULTS[fault]
    folder = quantized(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def headless(folder, tied):
    """What transformers' ``FastVlmModel.save_pretrained`` writes: no "model." before the names, and no head."""
    folder = write(folder, "transformers", config_dict=config("transformers", tied))
    tensors = {name.removeprefix("model."): value for name, value in small_tensors().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_checkpoint_of_transformers_model_without_head(checkpoint, tmp_path):
    assert np.array_equal(logits(headless(tmp_path, tied=True)), logits(checkpoint("transformers")))


def test_a_head_that_is_nowhere_is_not_made_up(tmp_path):
    with pytest.raises(ValueError, match="without the head"):
        load(headless(tmp_path, tied=False))


def test_a_tower_without_position_convolutions_goes_there_and_back(tmp_path):
    """Written as timm's ``pos_embs`` of nulls, since it has no ``pos_embs_shapes``."""
    settings = {**checkpoints.apple_config(), "vision_config": {**small.VISION, "pos_embs_shapes": [None] * 5}}
    model = FastVlmForConditionalGeneration(config_of(settings, image_token_id=300))
    model.save_pretrained(tmp_path / "hf", layout="transformers")
    args = json.loads((tmp_path / "hf" / "config.json").read_text())["vision_config"]["model_args"]
    assert args == {"inference_mode": True, "pos_embs": [None] * 5, **small.VISION}
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype="float32")
    ids, pixels = mx.array([[1, *[300] * 6, 2]]), mx.array(small.pixels(1).transpose(0, 2, 3, 1))
    assert mx.allclose(again(ids, pixels).logits, model(ids, pixels).logits, atol=1e-4)


def test_position_convolutions_that_no_file_tells_timm_are_not_exported(tmp_path):
    settings = {
        **checkpoints.apple_config(),
        "vision_config": {**small.VISION, "pos_embs_shapes": [None] * 4 + [[7, 7]]},
    }
    model = FastVlmForConditionalGeneration(config_of(settings, image_token_id=300))
    with pytest.raises(ValueError, match="can't describe to timm"):
        model.save_pretrained(tmp_path / "hf", layout="transformers")
    assert not (tmp_path / "hf").exists()
    model.save_pretrained(tmp_path / "mlx")
    FastVlmForConditionalGeneration.from_pretrained(tmp_path / "mlx")


def config_of(settings, **changes):
    return replace(FastVlmConfig.from_dict(settings), **changes)
