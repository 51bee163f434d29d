"""MLX's export_function and vmap take the plain layers as they are, on a CPU too (docs/reference.md)."""

import mlx.core as mx
import pytest

from mlx_fastvlm.models.forms import plain
from tests.models.test_forms import IMAGE_IDS, new_model, pixels


@pytest.fixture(scope="module")
def model():
    return plain(new_model())


def close(got, expected):
    return mx.abs(got - expected).max() <= 1e-4 * expected.std()


def test_an_exported_model(model, tmp_path):
    file = str(tmp_path / "model.mlxfn")
    mx.export_function(file, lambda ids, image: model(ids, image).logits, IMAGE_IDS, pixels())
    exported = mx.import_function(file)
    for image in (pixels(), 1 - pixels()):
        assert close(exported(IMAGE_IDS, image)[0], model(IMAGE_IDS, image).logits)


def test_vmap_over_images(model):
    images = mx.stack([pixels(), 1 - pixels()])
    features = mx.vmap(model.get_image_features)(images)
    assert close(features, mx.stack([model.get_image_features(image) for image in images]))
    logits = mx.vmap(lambda image: model(IMAGE_IDS, image).logits)(images)
    assert close(logits, mx.stack([model(IMAGE_IDS, image).logits for image in images]))
