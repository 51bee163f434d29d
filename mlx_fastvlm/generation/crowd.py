"""Rows that decode together: one pass through the decoder gives each its next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..cache.batch import BatchCache
from .decoding import step
from .sampling import Pick, choose, tokens_of

if TYPE_CHECKING:
    from ..cache.policy import CachePolicy
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from .row import Row


class Crowd:
    """Rows of like precision with their keys and values in one batch cache.

    Attributes:
        rows: in the order of their slots.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, max_rows: int, policy: CachePolicy) -> None:
        self._model = model
        self._batch = BatchCache(len(model.language_model.layers), max_rows, policy)
        self.rows: list[Row] = []

    @staticmethod
    def kind(row: Row) -> Any:
        """Rows of one kind can be in one crowd, whatever the bounds of their caches."""
        policy = row.cache.policy
        return policy.kv_bits and (policy.kv_bits, policy.kv_group_size)

    def join(self, row: Row) -> None:
        """Take a row in; its own caches are given up."""
        with row.cache.growing(row.tokens) as caches:
            self._batch.join(caches)
        row.cache.drop()
        row.merged = True
        self.rows.append(row)

    def leave(self, row: Row) -> None:
        index = next(i for i, one in enumerate(self.rows) if one is row)
        self._batch.leave(index)
        self.rows[index] = self.rows[-1]
        self.rows.pop()

    def step(self) -> None:
        """Send every row's next token on its way."""
        self._batch.begin()
        picks = [row.pick for row in self.rows if isinstance(row.pick, Pick)]  # all of them: others have left
        logits = step(self._model, tokens_of(picks), self._batch.caches)
        self._batch.finish()
        for row, pick in zip(self.rows, choose([row.sampler for row in self.rows], logits)):
            row.pick = pick


def step_alone(model: FastVlmForConditionalGeneration, row: Row) -> None:
    """Send the next token of a row on its way that has caches of its own.

    Raises:
        ValueError: another answer has taken over its prompt cache.
    """
    assert isinstance(row.pick, Pick)  # rows with errors go no further
    with row.cache.growing(row.tokens) as caches:
        (row.pick,) = choose([row.sampler], step(model, tokens_of([row.pick]), caches))
