"""Reading ahead: everything once, never more than asked for, and nobody waits who need not."""

import threading

import pytest

from mlx_fastvlm.data.items import Item
from mlx_fastvlm.data.prefetch import Prefetch


def items(count, size=0):
    return iter([Item(str(i), bytes(size)) for i in range(count)])


def taken(prefetch):
    found = []
    with prefetch:
        while (one := prefetch.take(wait=True)) is not None:
            found.append(one)
    return found


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_every_item_once_with_what_became_of_it(threads):
    found = taken(Prefetch(items(200), lambda item: int(item.key) * 2, threads=threads, ahead=5))
    assert sorted((number, item.key, result) for number, item, result in found) == sorted(
        (i, str(i), 2 * i) for i in range(200)
    )


def test_one_thread_keeps_the_order():
    assert [number for number, *_ in taken(Prefetch(items(50), str, threads=1))] == list(range(50))


def test_an_error_is_given_in_place_of_a_result():
    def prepare(item):
        if item.key == "3":
            raise ValueError("broken")
        return item.key

    found = {number: result for number, _, result in taken(Prefetch(items(6), prepare, threads=2))}
    assert str(found.pop(3)) == "broken"
    assert found == {i: str(i) for i in (0, 1, 2, 4, 5)}


def test_a_source_that_fails_is_told_after_what_came_before():
    def source():
        yield from items(3)
        raise OSError("the disk is gone")

    prefetch = Prefetch(source(), str, threads=2)
    assert len(taken(prefetch)) == 3
    with pytest.raises(OSError, match="the disk is gone"):
        prefetch.check()


def test_one_that_takes_long_holds_no_other_up():
    free = threading.Event()

    def prepare(item):
        if item.key == "0":
            free.wait(60)
        return item.key

    with Prefetch(items(6), prepare, threads=2, ahead=6) as prefetch:
        assert [prefetch.take(wait=True)[0] for _ in range(5)] == [1, 2, 3, 4, 5]
        assert prefetch.take(wait=False) is None
        assert not prefetch.ended
        free.set()
        assert prefetch.take(wait=True)[0] == 0
        assert prefetch.take(wait=True) is None
        assert prefetch.ended


@pytest.mark.parametrize(("size", "bound"), [(0, 3), (100, 2), (1000, 1)])
def test_what_is_ahead_is_bounded(size, bound):
    """By number, and by the bytes that the source holds."""
    begun, changed = set(), threading.Condition()

    def prepare(item):
        with changed:
            begun.add(item.key)
            changed.notify_all()

    with Prefetch(items(20, size), prepare, threads=4, ahead=3, most_bytes=250) as prefetch:
        for got in range(17):
            with changed:
                assert changed.wait_for(lambda got=got: len(begun) >= min(got + 1, 20), 60)
                assert len(begun) <= got + bound
            prefetch.take(wait=True)


def test_nothing_is_begun_after_the_end():
    begun = []
    with Prefetch(items(1000), lambda item: begun.append(item.key), threads=2, ahead=4) as prefetch:
        prefetch.take(wait=True)
    for thread in prefetch._threads:
        thread.join(60)
    assert len(begun) <= 1 + 4 + 2
