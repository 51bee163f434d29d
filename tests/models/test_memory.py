"""Memory that goes back to the system."""

import ctypes
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_fastvlm.models import memory


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(memory._trim() is None, reason="not glibc, which alone keeps it")
def test_what_lies_before_something_in_use_goes_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    blocks = [libc.malloc(100_000) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    last = libc.malloc(100_000)
    for block in blocks:
        libc.free(block)
    before = resident()
    memory.give_back()
    assert resident() < before - 50 * 10**6
    libc.free(last)


def test_other_systems_have_nothing_to_call(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    memory._trim.cache_clear()
    try:
        assert memory._trim() is None
        memory.give_back()
    finally:
        memory._trim.cache_clear()


@pytest.mark.parametrize(("most", "kept"), [(2**30, True), (2**20, False)])
def test_what_mlx_keeps_goes_back_where_it_is_much(monkeypatch, most, kept):
    mx.clear_cache()
    mx.eval(mx.zeros(10**6) + 1)  # 4 MB
    monkeypatch.setattr(memory, "MOST_CACHED", most)
    memory.bound_cache()
    assert (mx.get_cache_memory() > 2**21) is kept
