"""A part of a data set for each of several processes, which share nothing: ``--shard 0/8``, or a rank of mlx.launch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part ``index``, from 0, of ``count``. Which part an image is in depends on its key alone, so that it stays there
    when others come or go."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"A shard must look like 0/8, from 0/8 to 7/8, got {self.index}/{self.count}.")

    def has(self, key: str) -> bool:
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def part(self, output: str) -> str:
        """The name of this part's own output: ``captions-0of8.jsonl``."""
        if self.count == 1 or output == "-" or not Path(output).suffix:
            return output
        path = Path(output)
        return str(path.with_name(f"{path.stem}-{self.index}of{self.count}{path.suffix}"))


def read_shard(text: str) -> Shard:
    """``0/8``; ``UsageError`` for anything else."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found:
        raise UsageError(f"A shard must look like 0/8, from 0/8 to 7/8, got {text!r}.")
    return Shard(int(found[1]), int(found[2]))


def shard_of_launch() -> Shard:
    """This process's, where ``mlx.launch`` has started it; all of the data set otherwise.

    Nothing is sent between the ranks, so one that dies or is late harms no other.
    """
    rank = os.environ.get("MLX_RANK")
    if rank is None or not rank.isdigit():
        return Shard()
    return Shard(int(rank), _world_size())


def _world_size() -> int:
    """As mlx.launch tells it: for nccl a number, for ring and jaccl a file with an entry for each rank."""
    if size := os.environ.get("MLX_WORLD_SIZE"):
        return int(size)
    for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES"):
        if file := os.environ.get(name):
            return len(json.loads(Path(file).read_text(encoding="utf-8")))
    raise UsageError("MLX_RANK is set, but not how many ranks there are; give --shard, or unset it.")
