"""The tower's own promises beyond parity."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import FastVlmForConditionalGeneration
from mlx_fastvlm.models.forms import plain
from tests.support import small
from tests.support.differences import deviations
from tests.support.reference import kernels


def pixels(count, height=128, width=192):
    return mx.random.uniform(shape=(count, height, width, 3))


@pytest.mark.parametrize("shape", [(128, 192, 3), (1, 128, 192, 1), (1, 3, 128, 192), (1, 100, 128, 3), (1, 0, 64, 3)])
def test_bad_pixel_shapes(small_model, shape):
    with pytest.raises(ValueError, match="pixel_values"):
        small_model[0].vision_tower(mx.zeros(shape))


def test_images_in_a_batch_do_not_mix(small_model):
    tower = small_model[0].vision_tower
    images = pixels(3)
    together = tower(images).last_hidden_state
    for i in range(3):
        assert mx.allclose(tower(images[i : i + 1]).last_hidden_state[0], together[i], atol=1e-4)


def test_any_sides_that_are_multiples_of_64(small_model):
    tower = small_model[0].vision_tower
    out = tower(pixels(1, 64, 320), output_hidden_states=True)
    assert out.last_hidden_state.shape == (1, 1, 5, 512)
    assert out.pooler_output.shape == (1, 512)
    assert [x.shape[1:3] for x in out.hidden_states] == [(16, 80), (8, 40), (4, 20), (2, 10), (1, 5)]
    assert tower(pixels(1)).hidden_states is None


@pytest.mark.parametrize("form", ["inference", "training"])
def test_large_kernels_without_an_activation(checkpoint, tmp_path, form):
    """timm's ``lkc_use_act: false``, in the form of the checkpoint and in ours, saved from it."""
    folder = shutil.copytree(checkpoint("transformers", training=form == "training"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_args"]["lkc_use_act"] = False
    (folder / "config.json").write_text(json.dumps(config))
    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    image = mx.array(small.pixels(1).transpose(0, 2, 3, 1))
    for either in (model, plain(FastVlmForConditionalGeneration.from_pretrained(tmp_path / "saved"))):
        out = either.vision_tower(image, output_hidden_states=True)
        states = [*out.hidden_states, out.last_hidden_state]
        for state, recorded in zip(states, json.loads(kernels.FILE.read_text())[form], strict=True):
            assert deviations(small.sample(state), np.array(recorded)) < 1e-4
