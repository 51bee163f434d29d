"""Training: what learns, what one update is, and what stops it."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import load
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.models.lora import adapter_tensors, adapters_of, load_adapters
from mlx_fastvlm.tuner import AdapterConfig, TrainingOptions, evaluate, train
from mlx_fastvlm.tuner.batches import make_batch
from mlx_fastvlm.tuner.features import ImageFeatures
from mlx_fastvlm.tuner.trainer import answer_loss, prepare_model
from tests.support.adapters import logits, new_model
from tests.support.training import LORA, samples, trained


def changed(model, folder):
    """Names of the parameters that differ from the checkpoint's."""
    before = dict(tree_flatten(load(folder, dtype="float32")[0].parameters()))
    after = dict(tree_flatten(model.parameters()))
    return {name for name in before if name in after and not mx.array_equal(before[name], after[name])}


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize(
    "sides",
    [
        *({}, {"train_projector": True}, {"train_projector": True, "train_vision": True}, {"train_embeddings": True}),
        {"train_vision": True, "vision_stages": 1},
    ],
)
def test_it_learns_what_it_should_and_nothing_else(checkpoint, kind, sides):
    folder = checkpoint("apple")
    adapters = AdapterConfig(kind, num_layers=2, rank=4)
    model, told = trained(folder, adapters=adapters, iters=12, batch_size=7, learning_rate=2e-3, **sides)
    losses = [report.loss for report in told]
    assert losses[-1] < 0.9 * losses[0]
    assert not model.training
    found = changed(model, folder)
    if kind != "full":
        assert not found
        parts = {name.split(".")[0] for name in adapters_of(model)}
        assert all(mx.abs(layer.lora_b).max() > 0 for layer in adapters_of(model).values())
    else:
        parts = {name.split(".")[0] for name in found}
        assert not any(name.startswith("language_model.layers.0.") for name in found)
        assert any("embed_tokens" in name for name in found) == ("train_embeddings" in sides)
    assert ("multi_modal_projector" in parts) == ("train_projector" in sides)
    assert ("vision_tower" in parts) == ("train_vision" in sides)
    if "vision_stages" in sides:
        names = adapters_of(model) if kind != "full" else found
        of_tower = [name for name in names if name.startswith("vision_tower.")]
        assert all(name.startswith(("vision_tower.stages.4.", "vision_tower.final_conv.")) for name in of_tower)


def test_qlora(checkpoint):
    """On 4 bits: the packed weights stay."""
    model = new_model(checkpoint("apple"), 4)
    before = dict(tree_flatten(model.parameters()))
    _, processor = load(checkpoint("apple"))
    told = []
    options = TrainingOptions(adapters=LORA, iters=10, batch_size=7, learning_rate=1e-3, steps_per_report=1)
    train(model, processor, samples(processor), [], options, report=told.append)
    assert told[-1].loss < told[0].loss
    after = dict(tree_flatten(model.parameters()))
    kept = [name for name in before if name in after or name.replace(".weight", ".linear.weight") in after]
    assert len(kept) > 40
    for name in kept:
        now = after.get(name, after.get(name.replace(".weight", ".linear.weight")))
        assert mx.array_equal(before[name], now), name


def test_the_loss_is_the_models_own(checkpoint):
    """With labels for the answers only, and all logits (transformers' loss, tests/whole/test_parity.py)."""
    model, processor = load(checkpoint("apple"), dtype="float32")
    data = samples(processor)
    batch = make_batch(data, processor.pad_token_id)
    model.freeze()
    features = ImageFeatures(model, processor)
    mine = answer_loss(model, features, batch, features.of(data)) / batch.targets.size
    ids, labels = (np.full((len(data), max(len(sample.ids) for sample in data)), fill) for fill in (0, -100))
    for i, sample in enumerate(data):
        ids[i, : len(sample.ids)] = sample.ids
        for start, stop in sample.learnt:
            labels[i, start:stop] = sample.ids[start:stop]
    pixels = processor.preprocess([image for sample in data for image in sample.images])
    theirs = model(mx.array(ids), pixels, labels=mx.array(labels)).loss
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert evaluate(model, processor, data, features, batch_size=3) == pytest.approx(theirs.item(), rel=1e-5)


def test_accumulated_batches_are_one_batch(checkpoint):
    """Of rows with answers of different lengths: tokens count alike, not batches."""
    options = {"iters": 4, "adapters": AdapterConfig(rank=4, scale=4.0), "optimizer": "sgd", "learning_rate": 0.1}
    _, processor = load(checkpoint("apple"), dtype="float32")
    data = samples(processor, 4)
    whole, _ = trained(checkpoint("apple"), train_set=data, **{**options, "batch_size": 4, "iters": 1})
    parts, _ = trained(
        checkpoint("apple"), train_set=data, **{**options, "batch_size": 1, "grad_accumulation_steps": 4}
    )
    for (name, a), (_, b) in zip(adapter_tensors(whole).items(), adapter_tensors(parts).items()):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-6), name
        if name.endswith("lora_b"):
            assert mx.abs(a).max() > 0


def test_clipping(checkpoint):
    """With plain gradient descent, an update's length is the rate times the clipped norm."""
    options = {"optimizer": "sgd", "learning_rate": 1.0, "iters": 1, "batch_size": 7}
    model, _ = trained(checkpoint("apple"), max_grad_norm=1e-3, adapters=AdapterConfig("full"), **options)
    before = dict(tree_flatten(load(checkpoint("apple"), dtype="float32")[0].parameters()))
    after = dict(tree_flatten(model.parameters()))
    length = sum(float(((after[name] - x) ** 2).sum()) for name, x in before.items()) ** 0.5
    assert length == pytest.approx(1e-3, rel=0.02)


def test_gradient_checkpointing_changes_nothing(checkpoint):
    options = {"adapters": AdapterConfig(rank=4, scale=4.0), "optimizer": "sgd", "learning_rate": 0.1, "iters": 2}
    one, _ = trained(checkpoint("apple"), **options)
    other, _ = trained(checkpoint("apple"), grad_checkpoint=True, **options)
    for (name, a), (_, b) in zip(adapter_tensors(one).items(), adapter_tensors(other).items()):
        assert mx.allclose(a, b, rtol=1e-3, atol=2e-5), name
        if name.endswith("lora_b"):
            assert mx.abs(a).max() > 0
    assert not other.language_model.gradient_checkpointing


def test_gradient_checkpointing_with_dropout_is_refused(checkpoint):
    """MLX draws anew for what it computes again, so the gradients would be of another loss."""
    with pytest.raises(UsageError, match="can't be combined with dropout"):
        TrainingOptions(adapters=AdapterConfig(dropout=0.1), grad_checkpoint=True)


def test_reports(checkpoint):
    _, told = trained(checkpoint("apple"), iters=6, steps_per_report=2, steps_per_eval=4, valid=3)
    kinds = [(report.iteration, report.valid_loss is not None) for report in told]
    assert kinds == [(0, True), (2, False), (4, False), (4, True), (6, False), (6, True)]
    assert told[1].to_dict().keys() == {
        *("iteration", "loss", "learning_rate", "images_per_second", "tokens_per_second"),
        *("answer_tokens", "peak_memory"),
    }
    assert told[0].to_dict().keys() == {"iteration", "valid_loss"}


def broken(model):
    """Weights with which a step can't be computed."""
    weight = model.language_model.layers[0].mlp.up_proj.weight
    model.language_model.layers[0].mlp.up_proj.weight = weight * mx.nan


def test_a_loss_that_is_none_names_its_rows(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"Iteration 1 has a loss of nan \(train\.jsonl, row \d; train") as raised:
        trained(checkpoint("apple"), iters=4, batch_size=7, change=broken, adapter_path=tmp_path / "adapters")
    assert "nothing was saved" in str(raised.value)
    assert not (tmp_path / "adapters").exists()


def test_the_last_good_adapter_is_kept(checkpoint, tmp_path):
    """The fourth iteration fails: the third's weights are there, and can be loaded."""
    model, _ = load(checkpoint("apple"), dtype="float32")
    expected, _ = trained(checkpoint("apple"), iters=3)
    held = []

    def break_it(report):
        if report.iteration == 3:
            held[0].language_model.layers[0].mlp.up_proj.linear.weight *= mx.inf

    with pytest.raises(ValueError, match=r"Iteration 4 has .*; the adapters of iteration 3 are in "):
        trained(checkpoint("apple"), iters=8, change=held.append, report=break_it, adapter_path=tmp_path)
    load_adapters(model, tmp_path)
    assert mx.array_equal(logits(model), logits(expected))


def test_what_can_not_be_trained(checkpoint):
    model, processor = load(checkpoint("apple"))
    with pytest.raises(ValueError, match="nothing to train on"):
        train(model, processor, [], [], TrainingOptions())
    with pytest.raises(UsageError, match="Nothing is chosen to be trained"):
        prepare_model(model, TrainingOptions(adapters=AdapterConfig("full", num_layers=0)))
    with pytest.raises(UsageError, match="Full fine-tuning needs plain weights"):
        prepare_model(new_model(checkpoint("apple"), 4), TrainingOptions(adapters=AdapterConfig("full")))
    data = samples(processor, 2)
    other = dataclasses.replace(data[1], images=(data[1].images[0].with_name("no.png"),))
    with pytest.raises(ValueError, match=r"row 2: .*no such image"):
        train(model, processor, [data[0], other], [], TrainingOptions())


def test_a_text_without_images_is_learnt(checkpoint):
    from mlx_fastvlm.tuner.conversations import conversation  # noqa: PLC0415  only here
    from mlx_fastvlm.tuner.samples import encode  # noqa: PLC0415  only here

    _, processor = load(checkpoint("apple"))
    data = [encode(conversation({"question": "Who?", "answer": "Me."}, "a", LORA), processor)]
    _, told = trained(checkpoint("apple"), train_set=data, iters=5, learning_rate=1e-2)
    assert told[-1].loss < told[0].loss


def test_modules_are_what_they_were(checkpoint):
    """Training leaves no class of the package patched (mlx-lm's checkpointing does)."""
    model, _ = trained(checkpoint("apple"), iters=1, grad_checkpoint=True, adapters=AdapterConfig())
    fresh = new_model(checkpoint("apple"))
    assert {type(layer).__call__ for layer in fresh.modules()} <= {
        *(type(layer).__call__ for layer in model.modules()),
        nn.Linear.__call__,
    }
