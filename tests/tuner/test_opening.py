"""What all rows begin with is run once, and nothing else changes."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_fastvlm import load
from mlx_fastvlm.tuner import AdapterConfig, TrainingOptions, encode_all, opening
from mlx_fastvlm.tuner.batches import make_batch
from mlx_fastvlm.tuner.conversations import conversation
from mlx_fastvlm.tuner.features import ImageFeatures
from mlx_fastvlm.tuner.opening import WORTH, common_opening
from mlx_fastvlm.tuner.samples import Sample
from mlx_fastvlm.tuner.trainer import answer_loss, prepare_model
from tests.support.training import IMAGES, rows, trained

IMAGE = -200


@st.composite
def samples_that_begin_alike(draw):
    """Rows of a few kinds of tokens, so that they have much in common, with images and answers anywhere."""
    ids = st.lists(st.sampled_from([1, 1, 1, 2, IMAGE]), min_size=2, max_size=60)
    together = draw(ids)
    found = []
    for number in range(draw(st.integers(1, 12))):
        row = tuple(together + draw(ids))
        start = draw(st.integers(1, len(row) - 1))
        found.append(Sample(row, ((start, draw(st.integers(start + 1, len(row)))),), (), f"row {number}"))
    return found


@given(samples_that_begin_alike())
def test_as_many_as_all_have_before_images_and_answers(found):
    many = common_opening(found, IMAGE)
    longest = 0
    while all(
        longest < len(row.ids) and row.ids[longest] == found[0].ids[longest] != IMAGE and longest + 1 < row.learnt[0][0]
        for row in found
    ):
        longest += 1
    assert many == (longest if longest * (len(found) - 1) >= WORTH else 0)


@pytest.fixture
def told(checkpoint):
    """Rows that begin with a system prompt, long ones and short ones; and the processor that made samples of them."""
    _, processor = load(checkpoint("apple"), dtype="float32")
    system = {"role": "system", "content": "You know who lives in every image. Be short. " * 4}
    found = []
    for i, row in enumerate(rows(), 1):
        row["messages"] = [
            system,
            {"role": "user", "content": row.pop("question")},
            {"role": "assistant", "content": row.pop("answer")},
        ]
        row["images"] = [row.pop("image")]
        found.append(conversation(row, f"train.jsonl, row {i}", IMAGES))
    return encode_all(found, processor, max_seq_length=500)[0], processor


@pytest.mark.parametrize("window", [None, 9])
def test_loss_and_gradients_are_the_same(checkpoint, told, window):
    """Of everything that is trained: the decoder, whose keys the opening has, and what lies before it."""
    data, processor = told
    model, _ = load(checkpoint("apple"), dtype="float32")
    model.language_model._windows = [window, None, *model.language_model._windows[2:]]
    sides = {"train_projector": True, "train_vision": True, "train_embeddings": True}
    prepare_model(model, TrainingOptions(adapters=AdapterConfig("full", num_layers=-1), **sides))
    features = ImageFeatures(model, processor)
    gradients_of = nn.value_and_grad(model, answer_loss)
    count = common_opening(data, processor.image_token_id)
    assert count > 40
    found = []
    for tokens in (0, count):
        batch = make_batch(data, processor.pad_token_id, tokens)
        assert batch.input_ids.shape[1] + tokens == max(sample.learnt[-1][1] for sample in data) - 1
        loss, gradients = gradients_of(model, features, batch, features.of(data))
        found.append((loss.item(), dict(tree_flatten(gradients))))
    (loss, plain), (same, opened) = found
    assert same == pytest.approx(loss, rel=1e-5)
    assert plain.keys() == opened.keys()
    for name, gradient in plain.items():
        size = mx.abs(gradient).max().item()
        assert mx.abs(gradient - opened[name]).max().item() <= 1e-4 * max(size, 1e-3), name


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"adapters": AdapterConfig(rank=4)}, True),
        ({"adapters": AdapterConfig(rank=4, dropout=0.1)}, False),
        ({"adapters": AdapterConfig(rank=4), "grad_checkpoint": True}, False),
    ],
)
def test_a_training_takes_it_where_it_can(checkpoint, told, options, runs, monkeypatch):
    made = []

    class Counted(opening.OpeningCache):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr("mlx_fastvlm.tuner.trainer.OpeningCache", Counted)
    data, _ = told
    _, reports = trained(checkpoint("apple"), train_set=data, iters=3, batch_size=7, **options)
    assert bool(made) == runs
    assert reports[-1].loss < reports[0].loss
    assert reports[-1].tokens_per_second > 0


def test_it_is_left_out_where_nothing_is_spared(told):
    data, processor = told
    assert common_opening(data[:1], processor.image_token_id) == 0
    other = dataclasses.replace(data[1], ids=(data[1].ids[0] + 1, *data[1].ids[1:]))
    assert common_opening([data[0], other, *data[2:]], processor.image_token_id) == 0
