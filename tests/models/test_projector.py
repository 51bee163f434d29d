"""Projectors other than the released one."""

import mlx.core as mx
import pytest

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration
from tests.support import small


def test_an_unknown_projector_is_refused():
    with pytest.raises(ValueError, match="projector_hidden_act"):
        FastVlmForConditionalGeneration(FastVlmConfig(projector_hidden_act="sine"))


def test_an_identity_passes_the_features_on(recorded):
    text = {**small.TEXT, "hidden_size": 512}
    config = FastVlmConfig(small.VISION, text, projector_type="identity")
    model = FastVlmForConditionalGeneration(config)
    assert not model.multi_modal_projector.parameters()
    image = mx.random.uniform(shape=(1, 128, 192, 3))
    features = model.vision_tower(image).last_hidden_state
    assert mx.array_equal(model.get_image_features(image), features.flatten(1, 2))
