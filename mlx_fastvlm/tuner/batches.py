"""Samples -> batches, in an order that is known for every step from the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from .samples import Sample

SORTED = 50  # batches that are cut from as many samples sorted by length, so that little of one is padding
# A length counts as up to so much more: else, where it tells the answer, a batch would hold one kind of answers.
LOOSE = 0.25


@dataclass(frozen=True)
class Batch:
    """Some samples as arrays.

    Attributes:
        opening: (1, tokens), int32: what all begin with, if it is run once; else None.
        input_ids: (samples, longest), int32, what follows, up to the last token that something is learnt from; padded
            on the right: what is before it does not see it.
        predicting: (answer tokens,), int32: places in the flattened ids whose next token is learnt.
        targets: (answer tokens,), int32: those next tokens.
    """

    opening: mx.array | None
    input_ids: mx.array
    predicting: mx.array
    targets: mx.array


def make_batch(samples: list[Sample], pad_token_id: int, opening: int = 0) -> Batch:
    """The arrays of samples, which all begin with so many tokens that are run once (``opening.py``)."""
    longest = max(sample.learnt[-1][1] for sample in samples)  # nothing is learnt behind it
    ids = np.full((len(samples), longest), pad_token_id, np.int32)
    learnt = np.zeros((len(samples), longest), bool)
    for i, sample in enumerate(samples):
        ids[i, : len(sample.ids)] = sample.ids[:longest]
        for start, stop in sample.learnt:
            learnt[i, start:stop] = True
    predicting = np.flatnonzero(learnt[:, opening + 1 :])  # no row begins with an answer
    return Batch(
        mx.array(ids[:1, :opening]) if opening else None,
        mx.array(ids[:, opening:-1]),
        mx.array(predicting.astype(np.int32)),
        mx.array(ids[learnt]),
    )


def epoch(samples: list[Sample], batch_size: int, seed: int, number: int) -> list[list[Sample]]:
    """One epoch's batches: every sample once, those of similar length together, in a random order.

    The last few samples make a smaller batch.
    """
    random = np.random.RandomState([seed % 2**32, number % 2**32])  # a generator whose numbers never change
    order = random.permutation(len(samples))
    batches: list[list[Sample]] = []
    for start in range(0, len(order), batch_size * SORTED):
        some = [samples[i] for i in order[start : start + batch_size * SORTED]]
        lengths = [len(sample.ids) * (1 + LOOSE * extra) for sample, extra in zip(some, random.rand(len(some)))]
        some = [some[i] for i in np.argsort(lengths, kind="stable")]
        batches += [some[first : first + batch_size] for first in range(0, len(some), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


class Order:
    """The batches of all steps, from 0 on."""

    def __init__(self, samples: list[Sample], batch_size: int, seed: int) -> None:
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._per_epoch = -(-len(samples) // batch_size)
        self._number, self._epoch = -1, [[samples[0]]]

    def __getitem__(self, step: int) -> list[Sample]:
        number, place = divmod(step, self._per_epoch)
        if number != self._number:
            self._number, self._epoch = number, epoch(self._samples, self._batch_size, self._seed, number)
        return self._epoch[place]


def in_order(samples: list[Sample], batch_size: int, batches: int) -> list[list[Sample]]:
    """For evaluating: the first ``batches`` times ``batch_size`` samples (-1 is all), sorted by length."""
    some = samples if batches < 0 else samples[: batches * batch_size]
    some = sorted(some, key=lambda sample: len(sample.ids))
    return [some[first : first + batch_size] for first in range(0, len(some), batch_size)]
