"""Whether a model fits into memory, told before it is loaded; and memory that goes back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

if TYPE_CHECKING:
    from .fastvlm import FastVlmForConditionalGeneration

# The tower's peak beyond its weights with the released models' shape: bytes, and bytes a pixel in float32. For a CPU's
# forms measured at 512 and 1024 pixels. For those of a GPU measured on the CPU backend at 1024 to 4096
# (benchmarks/image_memory.py): few of an image's arrays are needed at a time, but MLX allocates ahead of what runs. The
# constant is from the graph: small images do not fill the command buffers that Metal has waiting (docs/security.md).
TOWER_BYTES = {mx.DeviceType.cpu: (0, 430), mx.DeviceType.gpu: (100_000_000, 660)}

MOST_CACHED = 2**30  # bytes that MLX may keep for arrays to come, between one piece of a long work and the next

CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_memory(name: str, model: FastVlmForConditionalGeneration, image_size: int) -> None:
    """``OSError`` where less memory is free than a model, its weights not read yet, and one image need.

    An estimate: it knows the weights to the byte, and leaves out a long conversation's KV cache.
    """
    weights = sum(x.nbytes for _, x in tree_flatten(model.parameters()))
    needed = weights + tower_memory(image_size, model.vision_tower.dtype)
    free = free_memory()
    if free is not None and needed > free:
        raise OSError(
            f"{name} needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; close other "
            "programs, take a quantized or smaller model, or load it anyway with --force (force=True)."
        )


def tower_memory(image_size: int, dtype: mx.Dtype) -> int:
    """Bytes that the tower needs for one image, beside its weights."""
    fixed, of_pixel = TOWER_BYTES[mx.default_device().type]
    return fixed + of_pixel * image_size**2 * dtype.size // 4


def free_memory() -> int | None:
    """Bytes that the model may take, as far as the system tells; None where it does not."""
    if mx.default_device().type == mx.DeviceType.gpu:
        # On a Mac, what Metal lets a process use of the memory that both share. CUDA's devices do not say it here.
        limit = mx.device_info().get("max_recommended_working_set_size")
        return None if limit is None else max(0, int(limit) - mx.get_active_memory())
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    container = _free_in_container()
    return free if container is None else min(free, container)


def _free_in_container() -> int | None:
    """What a control group (version 2) leaves to this process; None without a limit."""
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        # Cached files count as used, but give way.
        statistics = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such files, or "max"
        return None
    return max(0, limit - used + int(statistics.get("inactive_file", 0)))


def bound_cache() -> None:
    """Let go what MLX keeps for arrays to come if that is much: arrays of many sizes would each leave theirs behind.

    If it is little, it stays: the system clears each page that it gives out again, which took a quarter of the tower's
    time with small images.
    """
    if mx.get_cache_memory() > MOST_CACHED:
        mx.clear_cache()


def give_back() -> None:
    """Let buffers go that nothing uses any more.

    MLX keeps them for arrays to come, and what it lets go, glibc keeps where something in use lies behind it.
    """
    mx.clear_cache()
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    """glibc's ``malloc_trim``; None where the C library is another."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
