"""Safetensors files: many tensors in one file, or in several with an index."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from .text import check_name, write_json

SHARD_LIMIT = 5 * 10**9  # bytes
MOST_TENSORS = 10**5  # a stranger's file could hold millions of empty ones; the released ones have fewer than 1,000

# safetensors' names of the types, and an integer type of the same width, since Python has no bfloat16 buffers.
_TYPES = {
    mx.float32: ("F32", mx.uint32),
    mx.bfloat16: ("BF16", mx.uint16),
    mx.float16: ("F16", mx.uint16),
    mx.uint32: ("U32", mx.uint32),
    mx.uint8: ("U8", mx.uint8),
    mx.int64: ("I64", mx.uint64),
}


def read_safetensors(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """A safetensors file's tensors, not yet read from disk, and its metadata.

    Raises:
        ValueError: it is broken, or no regular file, which might never end, or its name is not UTF-8.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  slow to import

    check_name(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file; put the safetensors file itself there.")
    try:
        with safe_open(path, framework="numpy") as file:  # checks that header and file agree, which mx.load does not
            count = len(file.keys())
        if count > MOST_TENSORS:
            raise ValueError(f"it holds {count} tensors, and no model more than {MOST_TENSORS}")
        # By its name alone, MLX would read a file as GGUF or NumPy's, with another parser.
        with _standard_input_taken():
            read: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        tensors, metadata = read
        return tensors, metadata
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is broken or cut off ({error}); download it again.") from None


@contextlib.contextmanager
def _standard_input_taken() -> Iterator[None]:
    """Something at descriptor 0 where standard input is closed: MLX takes a file that it opens there for a failure."""
    try:
        os.fstat(0)
    except OSError:
        taken = os.open(os.devnull, os.O_RDONLY)
        try:
            yield
        finally:
            os.close(taken)
    else:
        yield


def write_tensors(
    folder: Path,
    tensors: dict[str, mx.array],
    *,
    made_for: str,
    shard_limit: int = SHARD_LIMIT,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write tensors as ``model.safetensors``, or as shards with an index; empties ``tensors`` on the way.

    Each tensor is computed when its turn comes, and forgotten once it is written.

    Args:
        made_for: the ``format`` in the files' metadata, "mlx" or "pt".
        progress: is told the bytes of each tensor written.

    Returns:
        The size of all tensors in bytes.
    """
    shards: list[list[str]] = []
    room = 0
    for name in sorted(tensors):
        if tensors[name].nbytes > room:
            shards.append([])
            room = shard_limit
        shards[-1].append(name)
        room -= tensors[name].nbytes
    total = sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", tensors, shards[0], made_for, progress)
        return total
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, tensors, names, made_for, progress)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return total


def _write_file(
    path: Path, tensors: dict[str, mx.array], names: list[str], made_for: str, progress: Callable[[int], None]
) -> None:
    """One safetensors file: the length of a JSON header, the header, and the tensors' bytes in its order."""
    names = sorted(names, key=lambda name: (-tensors[name].itemsize, name))  # so that all lie aligned
    header: dict[str, Any] = {"__metadata__": {"format": made_for}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": _TYPES[tensor.dtype][0], "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begins at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name in names:
            tensor = mx.contiguous(tensors.pop(name))
            size = tensor.nbytes
            data: Any = tensor.view(_TYPES[tensor.dtype][1])  # a buffer, though its type does not say so
            file.write(memoryview(data).cast("B"))
            del tensor, data
            mx.clear_cache()  # MLX would keep the memory for tensors to come
            progress(size)
