"""Sequences in order: the best match is the best of all, and none begins with another."""

import random

import pytest

from mlx_fastvlm.cache.beginnings import Beginnings
from mlx_fastvlm.cache.tokens import in_common

TOKENS = (0, 1, 2, ("image", 0), ("image", 1), ("other", 0))


class Slow:
    """The same, by comparing with all of them."""

    def __init__(self):
        self.known = []

    def longest(self, tokens):
        return max((in_common(known, tokens) for known in self.known), default=0)

    def add(self, tokens):
        if self.longest(tokens) == len(tokens):
            return None
        replaced = [known for known in self.known if in_common(known, tokens) == len(known)]
        self.known = [known for known in self.known if known not in replaced] + [tokens]
        assert len(replaced) <= 1
        return replaced[0] if replaced else None


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_comparing_with_all_of_them_gives(seed):
    rng = random.Random(seed)
    fast, slow = Beginnings(), Slow()
    for _ in range(300):
        tokens = tuple(rng.choice(TOKENS) for _ in range(rng.randint(1, 6)))
        found, count = fast.longest(tokens)
        assert count == slow.longest(tokens) == in_common(found, tokens)
        assert found in slow.known or not slow.known
        if rng.random() < 0.3 and slow.known:
            gone = rng.choice(slow.known)
            slow.known.remove(gone)
            fast.remove(gone)
        else:
            assert fast.add(tokens) == slow.add(tokens)
        assert sorted(map(repr, fast)) == sorted(map(repr, slow.known))


def test_tokens_with_one_hash_are_not_taken_for_each_other(monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.cache.beginnings._hashes", lambda tokens: (0,) * len(tokens))
    known = Beginnings()
    known.add((1, 2, 3))
    assert known.longest((4, 5, 6)) == ((1, 2, 3), 0)
    assert known.longest((1, 2, 9)) == ((1, 2, 3), 2)
