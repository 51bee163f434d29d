"""A command that ``mlx.launch`` has started in several processes, which share one model and answer once."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from ..models.group import join_group


def group_of_launch() -> mx.distributed.Group | None:
    """The processes that were started together; None where this one is alone.

    Raises:
        RuntimeError: they can't reach each other.
    """
    if "MLX_RANK" not in os.environ:
        return None
    group = join_group()
    return group if group.size() > 1 else None


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """What several processes can't do, told before they meet."""
    if arguments.cache_file:
        parser.error("--prompt-cache can't be combined with mlx.launch: each process has only a share of the KV heads")
    if "-" in (arguments.prompt, arguments.video, *(arguments.image or [])):
        parser.error("- can't be combined with mlx.launch, which never ends its processes' standard input; give a file")


def draw_alike(group: mx.distributed.Group) -> None:
    """Tokens are drawn with the first process's seed in all of them."""
    seed: Any = mx.distributed.all_sum(mx.array(0 if group.rank() else secrets.randbits(30), mx.int32), group=group)
    mx.random.seed(seed.item())


@contextlib.contextmanager
def answering_once(group: mx.distributed.Group | None) -> Iterator[None]:
    """What other processes than the first print is dropped, but not their errors; none leaves before the others."""
    if group is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if group.rank():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
    mx.eval(mx.distributed.all_sum(mx.array(1), group=group))  # what is under way needs all of them
