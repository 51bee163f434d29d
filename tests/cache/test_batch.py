"""Rows in slots attend to exactly what their own caches would give them, whoever joins or leaves."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_fastvlm.cache.batch import BatchCache, Slot
from mlx_fastvlm.cache.policy import CachePolicy

from mlx_lm.models.base import scaled_dot_product_attention  # isort: skip

LAYERS, HEADS, QUERIES, DIM = 2, 2, 4, 32
BITS = st.sampled_from([None, 4, 8])
# Tokens of the prompt, places behind it (None: unbounded), how many steps the row decodes alone before it joins.
ROW = st.tuples(st.integers(1, 12), st.none() | st.integers(1, 9), st.integers(0, 14))
EVENTS = st.lists(st.one_of(ROW, st.integers(0, 5), st.just("step")), min_size=1, max_size=20)


class Row:
    """A row with caches of its own, and random keys, values and queries that are always the same."""

    def __init__(self, number, bits, prompt, window):
        self.random = np.random.RandomState(number)
        policy = CachePolicy(None if window is None else prompt + window, bits, 32)
        self.caches = [policy._make_cache(prompt) for _ in range(LAYERS)]
        for cache in self.caches:
            cache.update_and_fetch(*self.draw(prompt))

    def draw(self, length, heads=HEADS):
        return [mx.array(self.random.randn(1, heads, length, DIM).astype(np.float32)) for _ in range(2)]


def attend(cache, keys, values, queries):
    mask = cache.make_mask(1, return_array=False, window_size=None)
    keys, values = cache.update_and_fetch(keys, values)
    # A copy, since the quantized attention scales the queries in place.
    return scaled_dot_product_attention(queries + 0, keys, values, cache=cache, scale=0.2, mask=mask)


def step(batch, rows):
    """One token of every row, in the batch and alone: the two outputs, (layers, rows, ...)."""
    drawn = [[[*row.draw(1), row.draw(1, QUERIES)[0]] for row in rows] for _ in range(LAYERS)]
    alone = [[attend(row.caches[i], *own) for row, own in zip(rows, drawn[i])] for i in range(LAYERS)]
    batch.begin()
    together = [attend(cache, *map(mx.concatenate, zip(*drawn[i]))) for i, cache in enumerate(batch.caches)]
    batch.finish()
    return np.array(mx.stack(together)), np.array(mx.stack([mx.concatenate(rows) for rows in alone]))


@settings(max_examples=60)
@given(events=EVENTS, bits=BITS)
def test_a_row_in_a_slot_attends_to_what_its_own_cache_holds(events, bits):
    batch, rows, number = BatchCache(LAYERS, 4, CachePolicy(None, bits, 32)), [], 0
    for event in events:
        if isinstance(event, tuple) and len(rows) < 4:
            prompt, window, before = event
            row, number = Row(number, bits, prompt, window), number + 1
            for _ in range(before):
                for cache in row.caches:
                    attend(cache, *row.draw(1), row.draw(1, QUERIES)[0])
            assert batch.join(row.caches) == len(rows)
            rows.append(row)
        elif isinstance(event, int) and event < len(rows):
            batch.leave(event)
            rows[event] = rows[-1]
            rows.pop()
        elif event == "step" and rows:
            together, alone = step(batch, rows)
            assert np.abs(together - alone).max() < 1e-5
    if rows:  # long enough to come round every window
        for _ in range(12):
            together, alone = step(batch, rows)
            assert np.abs(together - alone).max() < 1e-5


def test_a_prompt_longer_than_its_window():
    """Read again after an interrupt, a bounded cache can hold more than it keeps; its slot does not."""
    row = Row(0, None, 4, 6)
    for cache in row.caches:
        cache.update_and_fetch(*row.draw(25))
    batch = BatchCache(LAYERS, 4, CachePolicy())
    batch.join(row.caches)
    for _ in range(15):
        together, alone = step(batch, [row])
        assert np.abs(together - alone).max() < 1e-5
    assert batch.end == 10


@pytest.mark.parametrize(
    ("slot", "places"),
    [
        (Slot(5), [5, 6, 7, 8]),
        (Slot(5, 2, 6), [5, 2, 3, 4]),
        (Slot(2, 2, 3), [2, 2, 2, 2]),
        (Slot(0, 0, 2), [0, 1, 0, 1]),
    ],
)
def test_places(slot, places):
    found = []
    for _ in range(4):
        found.append(slot.place)
        slot.offset += 1
    assert found == places


def test_joining_and_leaving_copies_no_other_row():
    """Memory of a batch: slots double, places grow by the step, and nothing else is ever allocated for a join."""
    batch = BatchCache(LAYERS, 16, CachePolicy())
    sizes = []
    for number in range(9):
        batch.join(Row(number, None, 7, None).caches)
        sizes.append(batch.nbytes)
    slot = 2 * LAYERS * HEADS * BatchCache.step * DIM * 4
    assert [size // slot for size in sizes] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    for _ in range(9):
        batch.leave(0)
    assert len(batch) == 0
    assert batch.nbytes == sizes[-1]
