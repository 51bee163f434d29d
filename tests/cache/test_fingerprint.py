"""What models are recognised by."""

from mlx_fastvlm import load
from mlx_fastvlm.cache.fingerprint import model_fingerprint


def test_a_model_with_one_other_number_is_another(checkpoint):

    model, _ = load(checkpoint("apple"))
    before = model_fingerprint(model)
    assert model_fingerprint(load(checkpoint("apple"))[0]) == before
    weight = model.language_model.layers[1].mlp.up_proj.weight
    weight[0, 0] += 1
    assert model_fingerprint(model) != before
