"""60 random configurations, loaded from transformers' ``config.json``, compute what transformers computed."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_fastvlm import FastVlmForConditionalGeneration
from tests.support import differences, small
from tests.support.paths import REFERENCE
from tests.support.reference.configurations import CASES, SIDE, inputs

RECORDED = np.load(REFERENCE / "configurations.npz")
CONFIGS, SHAPES = (json.loads(str(RECORDED[name])) for name in ("configs", "shapes"))


def far(values, recorded):
    """The largest difference of a sample, in the reference's standard deviations."""
    return float(np.abs(small.sample(np.array(values)) - recorded[1:]).max() / recorded[0])


@pytest.mark.parametrize("number", range(CASES))
def test_a_configuration(tmp_path, number, request):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[number]))
    tensors = {name: np.ascontiguousarray(small.tensor(name, shape)) for name, shape in SHAPES[number].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = FastVlmForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
    tokens = (SIDE // model.config.vision_config.patch_size) ** 2
    ids, pixels = inputs(number, tokens)
    ids, pixels = mx.array(ids), mx.array(pixels.transpose(0, 2, 3, 1))
    found = [
        far(model.get_image_features(pixels), RECORDED[f"features.{number}"]),
        far(model(ids, pixels).logits, RECORDED[f"logits.{number}"]),
    ]
    differences.largest["tests/whole/test_configurations.py"] = max(
        differences.largest.get("tests/whole/test_configurations.py", 0), *found
    )
    assert max(found) < 1e-4
    if number % 5 == 0:  # and there and back
        model.save_pretrained(tmp_path / "again")
        again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "again", dtype="float32")
        assert mx.allclose(again(ids, pixels).logits, model(ids, pixels).logits, atol=1e-4)
