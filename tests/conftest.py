"""Fixtures shared by the tests: what transformers computed, and small checkpoints in any layout."""

import sys
from pathlib import Path

import numpy as np
import pytest

import mlx_fastvlm  # before anything imports mlx, so that OpenBLAS is found

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "reference")]

import checkpoints  # noqa: E402

SHARED = HERE.parent.parent / "shared"


@pytest.fixture(scope="session")
def recorded():
    """Arrays that tests/reference/record.py took from transformers and timm."""
    with np.load(HERE / "reference" / "recorded.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Writes a small checkpoint, each kind once: ``checkpoint("apple", training=True)`` -> its folder."""
    written = {}

    def write(layout="apple", **how):
        key = (layout, *sorted(how.items()))
        if key not in written:
            written[key] = checkpoints.write(tmp_path_factory.mktemp(layout), layout, **how)
        return written[key]

    return write


@pytest.fixture(scope="session")
def small_model(checkpoint):
    """Model and processor of the small checkpoint in Apple's layout, float32."""
    return mlx_fastvlm.load(checkpoint("apple"), dtype="float32")


@pytest.fixture(scope="session")
def demo():
    """Model and processor of the embedded checkpoint."""
    return mlx_fastvlm.load("demo")


@pytest.fixture(scope="session")
def facts():
    """The folder of real configs, tensor names and vocabulary, which only the developers have."""
    if not (SHARED / "facts").is_dir():
        pytest.skip("needs ../shared/facts")
    return SHARED / "facts"


def deviations(ours, theirs):
    """The largest difference, in standard deviations of the reference."""
    ours, theirs = np.array(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / theirs.std()
