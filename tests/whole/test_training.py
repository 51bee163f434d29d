"""Gradients, against torch's, and what training needs: checkpointing, a falling loss, a way to save the result."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, make_cache
from mlx_fastvlm.checkpoints.layouts import LAYOUTS, canonical_names
from mlx_fastvlm.checkpoints.reparameterize import reparameterize_tower
from mlx_fastvlm.models.forms import specialize
from tests.support import small
from tests.support.differences import deviations

TOWER = "vision_tower."
LIMIT = 1e-4


def batch(count=3):
    """The recorded batch's arguments."""
    ids, mask, positions = (mx.array(x) for x in small.batch())
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "labels": mx.array(small.labels()),
        "pixel_values": mx.array(small.pixels(count).transpose(0, 2, 3, 1)),
    }


def small_config():
    return FastVlmConfig.from_dict(small.transformers_config())


def published_loss(tensors, pixel_values):
    """The batch's loss as a function of a checkpoint's tensors: renamed, folded and run, all of it differentiable."""
    config = small_config()
    (layout,) = (layout for layout in LAYOUTS if layout.name == "transformers")
    named = {
        new: tensors[old].transpose(0, 2, 3, 1) if tensors[old].ndim == 4 else tensors[old]
        for old, new in canonical_names(layout, tensors, config.vision_config).items()
    }
    tower = {name.removeprefix(TOWER): tensor for name, tensor in named.items() if name.startswith(TOWER)}
    parameters = {name: tensor for name, tensor in named.items() if not name.startswith(TOWER)}
    parameters |= {
        TOWER + name: tensor for name, tensor in reparameterize_tower(tower, config.vision_config).tensors.items()
    }
    model = specialize(FastVlmForConditionalGeneration(config))
    model.update(tree_unflatten(list(parameters.items())))
    return model(**{**batch(), "pixel_values": pixel_values}).loss


@pytest.mark.parametrize("form", ["inference", "training"])
def test_gradients_of_everything_are_torchs(recorded, form):
    """With respect to the tensors as published; their fold is part of what is differentiated.

    That fixes the gradients of the folded weights as well: each published one is the folded one's times a number that
    is not zero, or that plus another folded one's.
    """
    tensors = small.tensors("inference")
    if form == "training":
        tensors = {n: t for n, t in tensors.items() if "vision_tower" not in n} | small.tensors("training")
    tensors = {name: mx.array(tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    gradients, by_pixels = mx.grad(published_loss, argnums=(0, 1))(tensors, batch()["pixel_values"])
    mine = {name: gradients[name] for name in small.trainable(gradients)}
    mine["pixel_values"] = by_pixels.transpose(0, 3, 1, 2)
    theirs, spreads = recorded[f"gradients.{form}"], recorded[f"gradients.{form}.std"]
    assert len(mine) == len(spreads)
    for (name, gradient), spread in zip(mine.items(), spreads):
        sample = small.sample(gradient)
        expected, theirs = theirs[: len(sample)], theirs[len(sample) :]
        assert deviations(sample, expected, spread) < LIMIT, name
        assert np.array(gradient).std() == pytest.approx(spread, rel=1e-4), name
    assert not len(theirs)


@pytest.fixture
def model():
    """The small model in its own form, weights and all, to be trained."""
    mx.random.seed(0)
    model = specialize(FastVlmForConditionalGeneration(small_config()))
    for name, module in model.named_modules():  # MLX leaves some weights zero, and gradients with them
        for key, value in module.items():
            if isinstance(value, mx.array):
                tensor = small.tensor(f"{name}.{key}", value.shape)
                module[key] = mx.array(tensor) * (0.3 if name.startswith("vision_tower.stages") else 1.0)
    model.train()
    return model


def loss_of(model, inputs):
    return model(**inputs).loss


def test_every_parameter_learns(model):
    loss, gradients = nn.value_and_grad(model, loss_of)(model, batch())
    assert mx.isfinite(loss)
    flat = dict(tree_flatten(gradients))
    assert flat.keys() == dict(tree_flatten(model.trainable_parameters())).keys()
    assert all(mx.abs(gradient).max() > 0 for gradient in flat.values())


def test_frozen_parts_stay(model):
    model.vision_tower.freeze()
    _, gradients = nn.value_and_grad(model, loss_of)(model, batch())
    assert {name.split(".")[0] for name, _ in tree_flatten(gradients)} == {"multi_modal_projector", "language_model"}


def measured(model, inputs):
    """Loss, gradients, and the most memory that computing them took, in bytes."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    loss, gradients = nn.value_and_grad(model, loss_of)(model, inputs)
    mx.eval(loss, gradients)
    return loss, gradients, mx.get_peak_memory() - before


DEEP = {
    "tower": ({"layers": [4, 6, 8, 2, 1]}, {}, {"input_ids": mx.array([[1, *[300] * 16, 2, 3]])}, 256),
    "decoder": ({}, {"num_hidden_layers": 8}, {"input_ids": mx.arange(4 * 256).reshape(4, 256) % 300}, None),
}


@pytest.mark.parametrize("deep", DEEP)
def test_gradient_checkpointing(deep):
    """The same gradients for less memory, with a GPU's kernels; out of training mode it does nothing.

    The CPU's own kernels keep so little for the gradients that there is less to save (docs/reference.md).
    """
    vision, text, inputs, pixels = DEEP[deep]
    mx.random.seed(0)
    config = {"image_token_id": 300, "tie_word_embeddings": True}
    model = FastVlmForConditionalGeneration(FastVlmConfig({**small.VISION, **vision}, {**small.TEXT, **text}, **config))
    inputs = inputs | {"labels": mx.where(inputs["input_ids"] == 300, -100, inputs["input_ids"])}
    if pixels:
        inputs["pixel_values"] = mx.random.uniform(shape=(1, pixels, pixels, 3))
    else:
        model.vision_tower.freeze()
        model.multi_modal_projector.freeze()
    specialize(model, mx.gpu)
    mx.eval(model.parameters(), inputs)
    loss, gradients, plain = measured(model, inputs)
    model.gradient_checkpointing_enable()
    again, same, less = measured(model, inputs)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, a), (_, b) in zip(tree_flatten(gradients), tree_flatten(same)):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-4 * mx.abs(a).max().item()), name
    assert less < 0.65 * plain
    del gradients, same
    model.eval()
    assert measured(model, inputs)[2] > 1.4 * less
    model.train()
    model.gradient_checkpointing_disable()
    assert measured(model, inputs)[2] > 1.4 * less


def test_checkpointing_leaves_generation_alone(model):
    model.gradient_checkpointing_enable()
    cache = make_cache(model)
    first = model(mx.array([[1, 2, 3]]), past_key_values=cache).logits
    assert cache[0].offset == 3
    assert mx.allclose(model(mx.array([[1, 2, 3]])).logits, first, atol=1e-5)


def test_a_few_steps_lower_the_loss_and_can_be_saved(model, tmp_path):
    optimizer = optim.Adam(3e-3)
    step = nn.value_and_grad(model, loss_of)
    losses = []
    for _ in range(6):
        loss, gradients = step(model, batch())
        optimizer.update(model, gradients)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.save_pretrained(tmp_path / "trained")
    trained = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "trained", dtype="float32")
    assert trained(**batch()).loss.item() == pytest.approx(model(**batch()).loss.item(), rel=1e-6)
