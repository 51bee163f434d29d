"""Work on several CPU streams: the same results, in order, whatever the number of cores."""

import sys
import threading
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_fastvlm.models import streams
from tests.support.processes import run


@pytest.fixture(params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(streams, "_count", lambda: request.param)
    return request.param


def test_pieces_come_back_in_order(cores):
    x = mx.arange(12.0)
    done = streams.spread(x, range(12), lambda x, i: mx.exp(x[i]) * 2)
    assert mx.allclose(mx.stack(done), mx.exp(x) * 2)
    assert streams.spread(x, [], lambda x, i: x) == []


def test_a_piece_has_one_core(cores):
    assert streams.free_cores() == cores
    inside = streams.spread(mx.zeros(1), range(3), lambda x, i: (x + streams.free_cores()) * 1)
    assert [y.item() for y in inside] == [1, 1, 1]
    nested = streams.spread(
        mx.arange(6.0), range(3), lambda x, i: mx.stack(streams.spread(x, range(6), lambda x, j: x[j] + i))
    )
    assert mx.stack(nested).tolist() == [[j + i for j in range(6)] for i in range(3)]
    assert streams.free_cores() == cores


def test_an_error_in_a_piece_leaves_the_cores_free(cores):
    def fail(x, i):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        streams.spread(mx.zeros(1), range(3), fail)
    assert streams.free_cores() == cores


def test_every_thread_has_streams_of_its_own(cores):
    sums = {}

    def run(start):
        x = mx.arange(start, start + 8.0)
        sums[start] = sum(y.item() for y in streams.spread(x, range(8), lambda x, i: x[i] * 2))
        mx.clear_streams()

    threads = [threading.Thread(target=run, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums == {start: 2 * sum(range(start, start + 8)) for start in range(6)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' libraries share work out by themselves")
@pytest.mark.parametrize(("threads", "count"), [(None, 4), (1, 4), (2, 2), (3, 1), (4, 1), (16, 1)])
def test_streams_and_openblas_take_no_more_than_all_cores(threads, count, monkeypatch):
    library = SimpleNamespace() if threads is None else SimpleNamespace(openblas_get_num_threads=lambda: threads)
    monkeypatch.setattr(streams.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(streams.os, "sched_getaffinity", lambda _: set(range(4)))
    streams._count.cache_clear()
    assert streams._count() == count
    streams._count.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is used on Linux")
@pytest.mark.parametrize("first", ["mlx_fastvlm", "mlx.core"])
@pytest.mark.parametrize("wish", [None, "2"])
def test_openblas_has_one_thread_unless_told_otherwise(first, wish, monkeypatch):
    """Also where somebody loaded it, and MLX, before."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if wish:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", wish)
    code = f"""if True:
        import ctypes, os
        library = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        before = library.openblas_get_num_threads()
        import {first}
        from mlx_fastvlm.models.streams import _count
        print(before, library.openblas_get_num_threads(), len(os.sched_getaffinity(0)), _count())
    """
    done = run([sys.executable, "-c", code])
    if "OSError" in done.stderr:
        pytest.skip("OpenBLAS is not installed")
    before, after, cores, count = map(int, done.stdout.split())
    assert after == (before if wish else 1)
    assert count == max(1, min(8, cores // after))
