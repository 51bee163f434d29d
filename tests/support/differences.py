"""How far what is computed here lies from a reference; ``pytest --differences`` prints what each test measured."""

import os

import numpy as np

largest = {}  # of each test, in standard deviations


def deviations(ours, theirs, spread=None):
    """The largest difference, in standard deviations of the reference (``spread``, where that is only a sample)."""
    ours, theirs = np.array(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    found = np.abs(ours - theirs).max() / (theirs.std() if spread is None else spread)
    test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0].partition(" ")[0]
    largest[test] = max(found, largest.get(test, 0.0))
    return found
