"""Gradients and one step of AdamW are those of torch and peft, recorded by tests/support/reference/tuning.py."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import load
from mlx_fastvlm.models.lora import adapters_of
from mlx_fastvlm.tuner import AdapterConfig, TrainingOptions
from mlx_fastvlm.tuner.trainer import prepare_model
from tests.support import small
from tests.support.differences import deviations
from tests.support.paths import REFERENCE
from tests.whole.test_training import batch

LIMIT = 1e-4


@pytest.fixture(scope="module")
def tuning():
    with np.load(REFERENCE / "tuning.npz") as file:
        return dict(file)


def prepared(checkpoint, kind):
    """The small model with the adapters that were recorded, and the optimizer."""
    model, _ = load(checkpoint("transformers"), dtype="float32")
    adapters = AdapterConfig(kind, num_layers=2, rank=small.RANK, scale=small.SCALE, keys=small.TUNED)
    how = {"optimizer": "adamw", "optimizer_config": {"eps": small.EPS[kind]}, "weight_decay": 0.01}
    options = TrainingOptions(adapters=adapters, learning_rate=small.RATE, **how)
    prepare_model(model, options)
    for name, layer in adapters_of(model).items():
        for part in ("lora_a", "lora_b"):
            layer[part] = mx.array(small.adapter(f"{name}.{part}", layer[part].shape))
    return model.train(), options.make_optimizer()


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_gradients_and_a_step_are_torchs_and_pefts(checkpoint, tuning, kind):
    model, optimizer = prepared(checkpoint, kind)
    loss, gradients = nn.value_and_grad(model, lambda model: model(**batch()).loss)(model)
    assert loss.item() == pytest.approx(tuning[f"{kind}.loss"].item(), rel=1e-5)
    optimizer.update(model, gradients)
    found = {"gradients": dict(tree_flatten(gradients)), "after": dict(tree_flatten(model.trainable_parameters()))}
    for part, tensors in found.items():
        assert sorted(tensors) == tuning[f"{kind}.names"].tolist()
        theirs = tuning[f"{kind}.{part}"]
        for name, spread in zip(sorted(tensors), tuning[f"{kind}.{part}.std"]):
            sample = small.sample(tensors[name])
            expected, theirs = theirs[: len(sample)], theirs[len(sample) :]
            assert deviations(sample, expected, spread) < LIMIT, (part, name)
        assert not len(theirs)
