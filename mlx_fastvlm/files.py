"""Files on disk: JSON and safetensors, read with care, and written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

JSON_LIMIT = 64 * 2**20  # bytes; the largest file in use, Qwen2's tokenizer.json, has 11 MB


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, no JSON, or no object.
    """
    path = Path(path)
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path} is larger than {JSON_LIMIT >> 20} MB, which no checkpoint needs; don't trust it.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; don't trust this checkpoint.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON ({error}); download it again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; download it again.")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """A side file's object; a missing file is an empty one."""
    return read_json(path) if path.is_file() else {}


def read_safetensors(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """A safetensors file's tensors, not yet read from disk, and its metadata; ``ValueError`` where it is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks that header and file agree, which mx.load leaves to chance
            pass
        # By its name alone, MLX would read a file as GGUF or NumPy's, with another parser.
        read: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        tensors, metadata = read
        return tensors, metadata
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is broken or cut off ({error}); download it again.") from None


SHARD_LIMIT = 5 * 10**9  # bytes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or file size

# safetensors' names of the types, and an integer type of the same width, since Python has no bfloat16 buffers.
_TYPES = {
    mx.float32: ("F32", mx.uint32),
    mx.bfloat16: ("BF16", mx.uint16),
    mx.float16: ("F16", mx.uint16),
    mx.uint32: ("U32", mx.uint32),
    mx.uint8: ("U8", mx.uint8),
    mx.int64: ("I64", mx.uint64),
}


@contextlib.contextmanager
def atomic_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` only if the block ends well; otherwise it is removed.

    What a process that was killed left behind is removed too, or put back if it had moved the target away.

    Raises:
        FileExistsError: ``target`` has content already, unless ``force`` allows to replace it.
        OSError: another process is writing to it, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _writing_alone(target):
        _clean_up(target)
        if not force:
            check_empty(target)
        # Beside the target: a rename works only within a file system.
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent))
        try:
            yield folder
            folder.chmod(0o755)  # mkdtemp's folders are private
            _swap(folder, target, force)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(f"{target} could not be written ({error.strerror}); make room. Nothing is kept.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A file to write, which becomes ``target`` (or replaces it) only if the block ends well; otherwise it is removed.

    It has ``target``'s extension.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.unfinished-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    file = Path(name)
    try:
        yield file
        file.chmod(0o644)
        file.replace(target)
    finally:
        file.unlink(missing_ok=True)


def check_empty(target: Path):
    """``FileExistsError`` where there is something at ``target`` to lose."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists already; choose another folder, or replace it with --force.")


@contextlib.contextmanager
def _writing_alone(target: Path) -> Iterator[None]:
    """``OSError`` where another process is writing to ``target``.

    The system drops the lock when its holder ends, however that happens, so nobody has to clean up after one that was
    killed. Windows has no such locks: there nothing is refused.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = target.parent / f".{target.name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed the file in between: then this lock is on nothing.
            alone = os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except OSError:
            alone = False
        if not alone:
            raise OSError(f"Another process is writing to {target}; wait until it has ended, or choose another folder.")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _clean_up(target: Path):
    """Remove what killed processes left; nobody else is writing now."""
    for replaced in target.parent.glob(f".{glob.escape(target.name)}.replaced-*"):
        old = replaced / target.name
        if old.exists() and not target.exists():  # killed between the two renames of _swap
            old.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    for unfinished in target.parent.glob(f".{glob.escape(target.name)}.unfinished-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _swap(folder: Path, target: Path, force: bool):
    """Rename ``folder`` to ``target``; what was there goes only after that has worked."""
    if not force:
        check_empty(target)  # somebody may have put something there meanwhile
    if not target.exists():
        folder.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent)) / target.name
    target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


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
):
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


def write_json(path: Path, value: dict | list):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
