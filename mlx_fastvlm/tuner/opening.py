"""The tokens that all rows of a batch begin with, a system prompt above all: they are run once, for all rows.

What a token becomes follows from the tokens before it alone, so their keys and values are every row's; and each of them
is given the sum of all rows' gradients, as it is where every row has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache.kv import KVCache
from ..cache.tokens import in_common

if TYPE_CHECKING:
    from .samples import Sample

WORTH = 128  # tokens that have to be spared, for a pass of their own through all layers


def common_opening(samples: list[Sample], image_token_id: int) -> int:
    """How many tokens all samples begin with, before any image and any answer; 0 where they are too few to count."""
    first, last = (chosen(sample.ids for sample in samples) for chosen in (min, max))
    same = in_common(first, last)
    image = first.index(image_token_id) if image_token_id in first else same
    # Whose answer begins at a token learns it from the one before, which is run with the rows.
    same = min(same, image, min(sample.learnt[0][0] for sample in samples) - 1)
    return same if same * (len(samples) - 1) >= WORTH else 0


class OpeningCache(KVCache):
    """Keys and values of one row's tokens, and then of all rows that begin with them."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Those of the opening, (1, heads, tokens, head_dim), are kept; those of what follows are put behind them.

        Nothing is written in place: gradients go back through it.
        """
        if self.keys is None or self.values is None:
            self.keys, self.values, self.offset = keys, values, keys.shape[2]
            return keys, values
        return _behind(self.keys, keys), _behind(self.values, values)


def _behind(opening: mx.array, rest: mx.array) -> mx.array:
    return mx.concatenate([mx.broadcast_to(opening, (rest.shape[0], *opening.shape[1:])), rest], axis=2)
