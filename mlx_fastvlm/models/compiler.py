"""Whether MLX may fuse operations on a CPU, for which it runs the system's C++ compiler.

What that makes lies in ``mlx`` in the folder for temporary files, under names that are the same in every run, and MLX
loads what it finds there. Where another user made that folder, or could write to it, that would be another's code.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
from pathlib import Path

import mlx.core as mx


@functools.cache
def may_compile() -> bool:
    """Whether there is a compiler, and the folder is this user's alone; it is made, if nobody did yet."""
    if not hasattr(os, "geteuid") or shutil.which("g++") is None:
        return False
    temporary = _temporary_folder()
    parts = ["mlx", mx.__version__, "cpu"]  # type: ignore[attr-defined]  # its stub lacks it
    folders = [temporary.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    try:
        return _keeps_names(temporary) and all(map(_is_own, folders))
    except OSError:
        return False


def _temporary_folder() -> Path:
    """Where MLX looks (C++'s ``std::filesystem::temp_directory_path``)."""
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
    return Path(next((os.environ[name] for name in names if os.environ.get(name)), "/tmp"))


def _keeps_names(folder: Path) -> bool:
    """Whether nobody else can put another folder in the place of one in it."""
    found = folder.stat()
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return bool(found.st_mode & stat.S_ISVTX) or (found.st_uid in (0, os.geteuid()) and not writable)


def _is_own(folder: Path) -> bool:
    """Whether a folder, made if it is not there, is this user's and nobody else may write to it."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    found = folder.lstat()
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not writable
