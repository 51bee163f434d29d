"""One training by several processes (``mlx.launch``), of which each takes a part of every batch.

All hold the same weights and make the same updates: of gradients that are summed over the ranks, once an update, and as
one array, since each exchange is a chance for a network to stall.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from ..models.group import join_group
from ..models.streams import take_cores
from .packing import pack, unpack

T = TypeVar("T")

BOOT = Path("/proc/sys/kernel/random/boot_id")  # one for each machine; containers of several may have one name


class Ranks:
    """This process among those that ``mlx.launch`` has started; alone if it has not, and then nothing is sent.

    Raises:
        RuntimeError: they can't reach each other.
    """

    def __init__(self) -> None:
        group = join_group()
        self.rank, self.count = group.rank(), group.size()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    def share(self, rows: list[T]) -> list[T]:
        """What of a list is this rank's: rows sorted by length are dealt out, so that none has all the long ones."""
        return rows[self.rank :: self.count]

    def sum(self, tree: Any) -> Any:
        """A tree of arrays, each summed over the ranks; in float32 if there are several."""
        if self.count == 1:
            return tree
        summed = mx.distributed.all_sum(pack(tree))
        mx.eval(summed)
        return unpack(summed, tree)

    def wait(self) -> None:
        """Return when all ranks have come so far."""
        if self.count > 1:
            mx.eval(mx.distributed.all_sum(mx.zeros(1)))

    def divide_cores(self) -> None:
        """Ranks that have the same cores take an equal part each, on Linux; elsewhere nothing happens.

        On shared ones, Linux keeps moving the threads of a step, which wait for each other: it takes half as long
        again.
        """
        if self.count == 1 or sys.platform != "linux":
            return
        cores = sorted(os.sched_getaffinity(0))
        same = self._gather((BOOT.read_text(), cores))
        sharing = [rank for rank in range(self.count) if mx.array_equal(same[rank], same[self.rank]).item()]
        each, place = len(cores) // len(sharing), sharing.index(self.rank)
        if each and len(sharing) > 1:
            take_cores(set(cores[place * each : (place + 1) * each]))

    def _gather(self, what: Any) -> mx.array:
        """A digest of something that has a ``repr``, of every rank: (ranks, bytes)."""
        digest = mx.array(list(hashlib.sha256(repr(what).encode()).digest()), mx.int32)
        return mx.distributed.all_gather(digest[None])

    def agree(self, what: Any) -> None:
        """``ValueError``, on every rank, unless all ranks have the same of something that has a ``repr``."""
        if self.count == 1:
            return
        of_all = self._gather(what)
        if not mx.array_equal(of_all, mx.broadcast_to(of_all[:1], of_all.shape)).item():
            raise ValueError(
                "The processes of this training have different data, options or saved states; give each the same "
                "command, and the same files."
            )
