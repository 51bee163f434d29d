"""Stage by stage against transformers and timm, on the same small weights, for every layout."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import deviations

import small
from mlx_fastvlm import load
from mlx_fastvlm.cache import make_cache

LIMIT = 1e-4

LAYOUTS = [
    ("transformers", {}),
    ("apple", {}),
    ("mlx-vlm", {}),
    ("apple", {"shards": 3}),
    ("apple", {"head": "copy"}),
    ("apple", {"head": "own"}),
    ("mlx-vlm", {"head": "own"}),
    ("apple", {"training": True}),
    ("transformers", {"training": True}),
]


def pixels(count):
    return mx.array(small.pixels(count).transpose(0, 2, 3, 1))


def ids_for(model, ids):
    return mx.array(np.where(ids == small.IMAGE_TOKEN, model.config.image_token_id, ids))


@pytest.mark.parametrize(("layout", "how"), LAYOUTS, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain")
def test_every_layout_computes_what_transformers_does(checkpoint, recorded, layout, how):
    model, _ = load(checkpoint(layout, **how), dtype="float32")
    form = "training" if how.get("training") else "inference"
    tower = model.vision_tower(pixels(1), output_hidden_states=True)
    for i, stage in enumerate([*tower.hidden_states, tower.last_hidden_state]):
        assert deviations(stage, recorded[f"{form}.stage{i}"]) < LIMIT
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2)).logits
    key = {"own": "row.untied_logits"}.get(how.get("head"), "row.logits")
    assert deviations(logits, recorded["training.row.logits" if form == "training" else key]) < LIMIT


@pytest.fixture(scope="module")
def batch_output(small_model):
    model, _ = small_model
    ids, mask, positions = small.batch()
    return model(
        ids_for(model, ids),
        pixels(3),
        attention_mask=mx.array(mask),
        position_ids=mx.array(positions),
        labels=mx.array(small.labels()),
        output_hidden_states=True,
        output_attentions=True,
    )


def real(array, axis=1):
    """The second row without its padding, whose values mean nothing."""
    padding = len(small.expand(small.TEXT_IDS[0])) - len(small.expand(small.TEXT_IDS[1]))
    array = np.array(array)
    return array[0], np.moveaxis(array[1], axis - 1, 0)[padding:]


def test_projected_features(small_model, recorded):
    assert deviations(small_model[0].get_image_features(pixels(3)), recorded["projected"]) < LIMIT


@pytest.mark.parametrize("layer", range(small.TEXT["num_hidden_layers"] + 1))
def test_every_decoder_layer_with_left_padding(batch_output, recorded, layer):
    for ours, theirs in zip(real(batch_output.hidden_states[layer]), real(recorded[f"batch.hidden{layer}"])):
        assert deviations(ours, theirs) < LIMIT


@pytest.mark.parametrize("layer", range(small.TEXT["num_hidden_layers"]))
def test_attention_weights(batch_output, recorded, layer):
    ours, theirs = batch_output.attentions[layer], recorded[f"batch.attention{layer}"]
    for a, b in zip(real(ours, axis=2), real(theirs, axis=2)):
        assert deviations(a, b) < LIMIT


def test_logits_and_loss_with_left_padding(batch_output, recorded):
    for ours, theirs in zip(real(batch_output.logits), real(recorded["batch.logits"])):
        assert deviations(ours, theirs) < LIMIT
    assert batch_output.loss.item() == pytest.approx(recorded["batch.loss"].item(), rel=1e-5)
    assert batch_output.image_hidden_states.shape == (3, small.TOKENS_PER_PICTURE, small.TEXT["hidden_size"])


def test_greedy_tokens_over_a_kv_cache(small_model, recorded):
    model, _ = small_model
    cache = make_cache(model)
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2), past_key_values=cache, logits_to_keep=1).logits
    tokens = []
    for _ in recorded["row.greedy"]:
        tokens.append(mx.argmax(logits[0, -1]).item())
        logits = model(mx.array([[tokens[-1]]]), past_key_values=cache).logits
    assert tokens == recorded["row.greedy"].tolist()


def test_layouts_agree_on_the_bit(checkpoint):
    """Apple's and mlx-vlm's files hold the same numbers in another order, so folding must give the same tensors."""
    from mlx.utils import tree_flatten

    one, other = (dict(tree_flatten(load(checkpoint(name))[0].parameters())) for name in ("apple", "mlx-vlm"))
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]) for name in one)
