"""The queue's laws: nothing is lost or passed over, and two clients that both wait are given the same."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_fastvlm.server.fairness import FairQueue, QueueClosed

COSTS = st.integers(1, 8)
PUT = st.tuples(st.just("put"), st.sampled_from("abcd"), COSTS)
DO = PUT | st.tuples(st.just("take")) | st.tuples(st.just("discard"), st.integers(0, 200))


@settings(max_examples=200)
@given(st.lists(DO, max_size=80))
def test_nothing_is_lost_and_each_client_is_served_in_order(actions):
    queue, there, number = FairQueue(), {}, 0
    for action in actions:
        if action[0] == "put":
            _, client, cost = action
            queue.put(number, client, cost)
            there.setdefault(client, []).append(number)
            number += 1
        elif action[0] == "take":
            taken = queue.take()
            assert (taken is None) == (not any(there.values()))
            if taken is not None:
                (owner,) = (client for client, line in there.items() if taken in line)
                assert there[owner].pop(0) == taken
        else:
            queue.discard(action[1])
            for line in there.values():
                line[:] = [item for item in line if item != action[1]]
        assert len(queue) == sum(map(len, there.values()))


@settings(max_examples=200)
@given(
    before=st.lists(PUT, max_size=30),
    taken=st.integers(0, 30),
    costs=st.lists(st.lists(COSTS, min_size=40, max_size=40), min_size=2, max_size=4),
    turns=st.integers(1, 40),
)
def test_clients_that_wait_are_given_the_same(before, taken, costs, turns):
    """Whatever came before, in any stretch in which two wait: to within the cost of one item of each."""
    queue = FairQueue()
    for _, client, cost in before:
        queue.put((client, cost), client, cost)
    for _ in range(taken):
        queue.take()
    for client, each in zip("wxyz", costs):
        for cost in each:
            queue.put((client, cost), client, cost)
    given = dict.fromkeys("abcdwxyz"[: 4 + len(costs)], 0)
    for _ in range(turns):
        client, cost = queue.take()
        given[client] += cost
    new = [given[client] for client in "wxyz"[: len(costs)]]
    assert max(new) - min(new) <= 2 * max(map(max, costs))


def test_fifty_requests_do_not_hold_up_another_client():
    queue = FairQueue()
    for i in range(50):
        queue.put(("many", i), "many")
    for _ in range(10):
        queue.take()
    queue.put(("one", 0), "one")
    assert ("one", 0) in [queue.take(), queue.take()]


def test_who_was_idle_has_saved_up_nothing():
    queue = FairQueue()
    queue.put("early", "idle")
    assert queue.take() == "early"
    for i in range(20):
        queue.put(("busy", i), "busy")
    for _ in range(10):
        queue.take()
    for i in range(10):
        queue.put(("idle", i), "idle")
    order = [queue.take()[0] for _ in range(10)]
    assert order.count("busy") == 5


def test_clients_that_have_gone_are_forgotten():
    queue = FairQueue()
    for i in range(1000):
        queue.put(i, f"client {i}")
        queue.take()
    assert len(queue._given) <= 1


def test_the_greediest_makes_room():
    queue = FairQueue()
    for i in range(5):
        queue.put(("greedy", i), "greedy")
    queue.put(("modest", 0), "modest")
    assert queue.displace(5) is None
    assert queue.displace(4) == ("greedy", 4)
    assert queue.displace(4) is None
    assert len(queue) == 5


def test_waiting_ends_by_items_by_a_call_and_by_time():
    queue = FairQueue()
    assert not queue.wait(0.01)
    queue.wake()
    assert queue.wait(0)
    assert not queue.wait(0)
    threading.Thread(target=lambda: (time.sleep(0.05), queue.put("item", "client"))).start()
    assert queue.wait(30)
    assert queue.take() == "item"


def test_a_closed_queue_takes_nothing():
    queue = FairQueue()
    queue.put("left", "client")
    assert queue.close() == ["left"]
    assert (len(queue), queue.take()) == (0, None)
    with pytest.raises(QueueClosed):
        queue.put("late", "client")


def test_threads_at_once():
    queue, taken = FairQueue(), []

    def take():
        while len(taken) < 400:
            item = queue.take()
            if item is None:
                queue.wait(0.01)
            else:
                taken.append(item)

    threads = [threading.Thread(target=take) for _ in range(2)]
    threads += [
        threading.Thread(target=lambda n=n: [queue.put((n, i), str(n % 3)) for i in range(100)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == [(n, i) for n in range(4) for i in range(100)]
