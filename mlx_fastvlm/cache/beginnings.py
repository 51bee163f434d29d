"""Token sequences of which none begins with another, in order, so that a new one's best match is found fast."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import itemgetter

from .tokens import Token, in_common

_Hashes = tuple[int, ...]


class Beginnings:
    """A set of token sequences, sorted.

    Sequences that begin alike stand side by side, so what has most in common with a new one is just before or just
    behind its place: two comparisons, however many sequences there are. They are in the order of their tokens' hashes,
    as tokens themselves have no order; what is in common is always told by the tokens.
    """

    def __init__(self) -> None:
        self._known: list[tuple[_Hashes, tuple[Token, ...]]] = []

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[Token, ...]]:
        return (known for _, known in self._known)

    def longest(self, tokens: Sequence[Token]) -> tuple[tuple[Token, ...], int]:
        """The sequence that has most tokens in common with this one's beginning, and how many; () and 0 if none has."""
        return self._longest(self._place(_hashes(tokens)), tokens)

    def add(self, tokens: tuple[Token, ...]) -> tuple[Token, ...] | None:
        """Add a sequence, unless another begins with it.

        Returns:
            The one that is its own beginning, whose place it takes; None where there is none.
        """
        hashes = _hashes(tokens)
        place = self._place(hashes)
        known, count = self._longest(place, tokens)
        if count == len(tokens):
            return None
        # What stands between a sequence and one that begins with it begins with it too: it is just before, if at all.
        replaced = known if count == len(known) > 0 else None
        if replaced is not None:
            place -= 1
            del self._known[place]
        self._known.insert(place, (hashes, tokens))
        return replaced

    def remove(self, tokens: tuple[Token, ...]) -> None:
        """Remove a sequence that is there."""
        self._known.remove((_hashes(tokens), tokens))

    def _longest(self, place: int, tokens: Sequence[Token]) -> tuple[tuple[Token, ...], int]:
        beside = [known for _, known in self._known[max(place - 1, 0) : place + 1]]
        return max(((known, in_common(known, tokens)) for known in beside), key=itemgetter(1), default=((), 0))

    def _place(self, hashes: _Hashes) -> int:
        return bisect_left(self._known, hashes, key=itemgetter(0))


def _hashes(tokens: Sequence[Token]) -> _Hashes:
    return tuple(map(hash, tokens))
