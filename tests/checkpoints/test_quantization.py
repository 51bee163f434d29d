"""What is quantized, how the config says so, and that it computes what it should."""

import json

import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_fastvlm import load
from mlx_fastvlm.checkpoints import quantization
from mlx_fastvlm.conversion.converter import convert
from tests.support.checkpoints import config, mlx_vlm, packed, small_tensors, write
from tests.support.differences import deviations
from tests.support.models import logits


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", quantization.BITS)
def test_every_precision(checkpoint, tmp_path, bits, group_size):
    report = convert(checkpoint("apple"), tmp_path / "q", quantize=True, q_bits=bits, q_group_size=group_size)
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]
    assert {key: settings[key] for key in ("bits", "group_size", "mode")} == {
        "bits": bits,
        "group_size": group_size,
        "mode": "affine",
    }
    model, _ = load(tmp_path / "q")
    packed = {path for path, module in model.named_modules() if hasattr(module, "bits")}
    assert packed == {key for key, value in settings.items() if isinstance(value, dict)}
    # 160, the perceptron's width, divides by 32 only; what depends on it stays whole and is listed.
    whole = [] if group_size == 32 else [f"language_model.layers.{i}.mlp.down_proj" for i in range(3)]
    assert report.kept == whole
    assert "language_model.embed_tokens" in packed
    assert not [path for path in packed if path.startswith(("vision_tower", "multi_modal"))]
    assert np.isfinite(logits(tmp_path / "q")).all()


def test_more_bits_agree_better(checkpoint, tmp_path):
    divergences = [
        convert(
            checkpoint("apple", head="own"), tmp_path / f"{bits}", quantize=True, q_bits=bits, q_group_size=32
        ).agreement.kl_divergence
        for bits in (2, 4, 8)
    ]
    assert divergences[0] > 4 * divergences[1] > 16 * divergences[2] > 0


def test_mixed_precision(checkpoint, tmp_path):
    source = checkpoint("apple", head="own")
    plain = convert(source, tmp_path / "4", quantize=True, q_group_size=32)
    mixed = convert(source, tmp_path / "mixed", quantize=True, q_group_size=32, q_mixed=True)
    settings = json.loads((tmp_path / "mixed" / "config.json").read_text())["quantization"]
    bits = {name: value["bits"] for name, value in settings.items() if isinstance(value, dict)}
    assert bits["lm_head"] == bits["language_model.embed_tokens"] == 8
    assert bits["language_model.layers.0.self_attn.q_proj"] == bits["language_model.layers.2.mlp.up_proj"] == 8
    assert bits["language_model.layers.1.mlp.down_proj"] == 8
    assert bits["language_model.layers.1.mlp.up_proj"] == bits["language_model.layers.1.self_attn.o_proj"] == 4
    assert mixed.agreement.kl_divergence < plain.agreement.kl_divergence


def test_the_vision_side_on_request(checkpoint, tmp_path):
    convert(checkpoint("apple"), tmp_path / "q", quantize=True, q_bits=8, q_group_size=32, q_vision=True)
    model, _ = load(tmp_path / "q")
    assert isinstance(model.vision_tower.stages[3].blocks[0].token_mixer.qkv, nn.QuantizedLinear)
    assert isinstance(model.vision_tower.stages[1].blocks[0].mlp.fc1, nn.QuantizedLinear)
    assert isinstance(model.multi_modal_projector.linear_1, nn.QuantizedLinear)
    assert isinstance(model.vision_tower.stages[0].blocks[0].mlp.fc1, nn.Linear)  # 16 channels: no group fits
    assert deviations(logits(tmp_path / "q"), logits(checkpoint("apple"))) < 0.3


def test_mxfp4(checkpoint, tmp_path):
    convert(checkpoint("apple"), tmp_path / "q", quantize=True, q_mode="mxfp4")
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]
    assert (settings["mode"], settings["bits"], settings["group_size"]) == ("mxfp4", 4, 32)
    assert np.isfinite(logits(tmp_path / "q")).all()


@pytest.fixture(scope="module")
def quantized_mlx_vlm(tmp_path_factory):
    """As mlx-community publishes them: decoder and projector in 8 bits."""

    def chosen(name, value):
        return value.ndim == 2 and not name.startswith("vision_tower")

    settings = config("mlx-vlm") | {"quantization": {"group_size": 32, "bits": 8}}
    folder = write(tmp_path_factory.mktemp("packed"), "mlx-vlm", config_dict=settings)
    save_file(packed(mlx_vlm(small_tensors()), chosen, 8), folder / "model.safetensors")
    return folder


def test_quantized_sources(quantized_mlx_vlm, tmp_path):
    convert(quantized_mlx_vlm, tmp_path / "same")
    assert deviations(logits(tmp_path / "same"), logits(quantized_mlx_vlm)) < 1e-5
    settings = json.loads((tmp_path / "same" / "config.json").read_text())["quantization"]
    assert "multi_modal_projector.linear_1" in settings
    convert(quantized_mlx_vlm, tmp_path / "plain", dequantize=True)
    assert not [name for name in load_file(tmp_path / "plain" / "model.safetensors") if name.endswith(".scales")]
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert deviations(logits(tmp_path / "plain"), logits(quantized_mlx_vlm)) < 1e-4
    convert(quantized_mlx_vlm, tmp_path / "again", quantize=True, q_bits=6, q_group_size=32)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization"]["bits"] == 6
    with pytest.raises(ValueError, match="--dequantize"):
        convert(quantized_mlx_vlm, tmp_path / "hf", layout="transformers")


def test_unpacking_rounds_nothing(checkpoint, tmp_path):
    """Not even where the scales are stored in bfloat16."""
    convert(checkpoint("apple"), tmp_path / "packed", quantize=True, q_group_size=32, dtype="bfloat16")
    convert(tmp_path / "packed", tmp_path / "plain", dequantize=True, dtype="float32")
    assert deviations(logits(tmp_path / "plain"), logits(tmp_path / "packed")) < 1e-5
