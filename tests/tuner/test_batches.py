"""The order of the data, and what a batch holds."""

from itertools import chain

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm.tuner.batches import SORTED, Order, epoch, in_order, make_batch
from mlx_fastvlm.tuner.samples import Sample


def sample(length, start=2, number=0):
    return Sample(tuple(range(10, 10 + length)), ((start, length - 1),), (), f"row {number}")


@pytest.fixture
def many():
    lengths = np.random.RandomState(0).randint(5, 200, 403)
    return [sample(int(length), number=i) for i, length in enumerate(lengths)]


def test_an_epoch_is_every_sample_once(many):
    batches = epoch(many, 4, 7, 0)
    assert [len(batch) for batch in batches].count(4) == 100
    assert len(batches) == 101
    assert sorted(s.place for s in chain(*batches)) == sorted(s.place for s in many)


def test_little_is_padding(many):
    def padding(batches):
        padded = sum(len(batch) * max(len(s.ids) for s in batch) for batch in batches)
        return padded / sum(len(s.ids) for s in many) - 1

    unsorted = [many[i : i + 4] for i in range(0, len(many), 4)]
    assert padding(epoch(many, 4, 7, 0)) < 0.15 < 0.3 < padding(unsorted)


def test_lengths_that_are_nearly_the_same_are_mixed():
    """Or a batch would hold one kind of answer: short or long, yes or no."""
    rows = [sample(56 + i % 3, number=i) for i in range(300)]
    batches = epoch(rows, 6, 7, 0)
    assert sum(len({len(s.ids) for s in batch}) == 1 for batch in batches) < 5


def test_the_order_is_the_seeds_and_the_steps_alone(many):
    order, again = Order(many, 4, 7), Order(many, 4, 7)
    told = [order[step] for step in range(205)]
    assert [again[step] for step in (150, 3, 204)] == [told[150], told[3], told[204]]
    assert told[:101] != told[101:202]
    assert [Order(many, 4, 8)[step] for step in range(10)] != told[:10]
    lengths = [len(batch[0].ids) for batch in told[:SORTED]]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_fewer_samples_than_a_batch():
    few = [sample(5, number=i) for i in range(3)]
    assert [len(Order(few, 8, 0)[step]) for step in range(3)] == [3, 3, 3]


def test_what_a_batch_holds():
    two = [Sample((5, 6, 7, 8, 9), ((1, 2), (3, 4)), (), "a"), Sample((1, 2, 3), ((2, 3),), (), "b")]
    batch = make_batch(two, 99)
    assert batch.opening is None
    assert batch.input_ids.tolist() == [[5, 6, 7], [1, 2, 3]]  # from 8 and 9 nothing is learnt
    assert batch.targets.tolist() == [6, 8, 3]
    assert batch.predicting.tolist() == [0, 2, 4]
    assert batch.input_ids.flatten()[batch.predicting].tolist() == [5, 7, 2]
    assert batch.input_ids.dtype == mx.int32
    shorter = [two[0], Sample((1, 2), ((1, 2),), (), "b")]
    assert make_batch(shorter, 99).input_ids.tolist() == [[5, 6, 7], [1, 2, 99]]


def test_what_a_batch_with_an_opening_holds():
    two = [Sample((5, 6, 7, 8, 9), ((4, 5),), (), "a"), Sample((5, 6, 1, 2), ((3, 4),), (), "b")]
    batch = make_batch(two, 99, 2)
    assert batch.opening.tolist() == [[5, 6]]
    assert batch.input_ids.tolist() == [[7, 8], [1, 2]]
    assert batch.targets.tolist() == [9, 2]
    assert batch.predicting.tolist() == [1, 2]


def test_evaluation_takes_the_first(many):
    some = in_order(many, 4, 3)
    assert {s.place for s in chain(*some)} == {f"row {i}" for i in range(12)}
    assert sum(map(len, in_order(many, 4, -1))) == len(many)
    assert in_order(many, 4, 0) == []
