"""Files and folders that are written whole or not at all.

Something unfinished lies beside its target, since a rename works only within a file system, and its name begins with a
dot. A folder's writer holds a lock file, ``.NAME.lock``, and notes in it the names of the folders that it makes: what a
killed process left behind can then be told from what is somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from .text import check_name

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or file size


@contextlib.contextmanager
def atomic_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` only if the block ends well; otherwise it is removed.

    What a process that was killed left behind is removed too, or put back if it had moved the target away. A link is
    followed. The folder has the mode of the one that it replaces; a new one's is what the umask leaves.

    Raises:
        FileExistsError: ``target`` has content already, unless ``force`` allows to replace it.
        OSError: another process is writing to it, or the disk is full.
        ValueError: no folder can be written under this name.
    """
    check_target(target, force=True)
    target = _followed(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _writing_alone(target) as journal:
        journal.clean_up()
        check_target(target, force=force)
        folder = journal.new_folder("unfinished")
        try:
            yield folder
            if target.is_dir():
                folder.chmod(stat.S_IMODE(target.stat().st_mode))
            if not force:
                check_target(target)  # somebody may have put something there meanwhile
            _swap(folder, target, journal)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(f"{target} could not be written ({error.strerror}); make room. Nothing is kept.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A file to write, which becomes ``target`` (or replaces it) only if the block ends well; otherwise it is removed.

    It has ``target``'s extension, and the mode of the file that it replaces; a new one's is what the umask leaves. A
    link is followed.
    """
    target = _followed(target)
    file = target.parent / f".{target.stem}.unfinished-{_token()}{target.suffix}"
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    # Never readable for others than in the end, and writable meanwhile.
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
    try:
        yield file
        if mode is not None:
            file.chmod(mode)
        file.replace(target)
    finally:
        file.unlink(missing_ok=True)


def check_target(target: Path, *, force: bool = False) -> None:
    """Whether a folder can be written as ``target``, before anything else is done for it.

    Raises:
        FileExistsError: there is something to lose, and ``force`` is not set.
        ValueError: it is the folder that this process is in or a parent of it, or its name is not UTF-8.
    """
    check_name(target)
    followed = _followed(target)
    if Path.cwd().is_relative_to(followed):
        raise ValueError(f"{followed} is the folder you are in, or holds it; name a folder to write to.")
    if force or (followed.is_dir() and not any(followed.iterdir())):
        return
    if os.path.lexists(followed):
        raise FileExistsError(f"{target} exists already; choose another folder, or replace it with --force.")


def _followed(target: Path) -> Path:
    return Path(os.path.realpath(target))


def _token() -> str:
    return secrets.token_hex(4)


class _Journal:
    """The folders that this process makes beside a target, noted in the lock file before they are made.

    Args:
        lock: the descriptor of the lock file, or None where there are no locks: then nothing is cleaned up.
    """

    def __init__(self, target: Path, lock: int | None) -> None:
        self._target = target
        self._lock = lock

    def new_folder(self, kind: str, mode: int = 0o777) -> Path:
        """An empty folder beside the target; ``mode`` as the umask leaves it."""
        name = f".{self._target.name}.{kind}-{_token()}"
        if self._lock is not None:
            os.write(self._lock, os.fsencode(f"{name}\n"))
        folder = self._target.parent / name
        folder.mkdir(mode)
        return folder

    def clean_up(self) -> None:
        """Remove what killed processes left, or put back what they had moved away; nobody else is writing now."""
        if self._lock is None:
            return
        # Only entries of this very folder, and only names that could be ours: the lock file might be a stranger's, and
        # must lead nowhere else, whatever stands in it.
        noted = set(os.fsdecode(os.pread(self._lock, 2**20, 0)).splitlines())
        ours = re.compile(rf"\.{re.escape(self._target.name)}\.(unfinished|replaced)-[0-9a-f]{{8}}")
        left = [folder for folder in self._target.parent.iterdir() if folder.name in noted]
        for folder in left:
            if not ours.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                continue
            old = folder / self._target.name
            if (
                ".replaced-" in folder.name and old.exists() and not self._target.exists()
            ):  # killed between _swap's renames
                old.rename(self._target)
            shutil.rmtree(folder, ignore_errors=True)
        os.ftruncate(self._lock, 0)


@contextlib.contextmanager
def _writing_alone(target: Path) -> Iterator[_Journal]:
    """``OSError`` where another process is writing to ``target``.

    The system drops the lock when its holder ends, however that happens, so nobody has to clean up after one that was
    killed. Windows has no such locks: there nothing is refused.
    """
    try:
        import fcntl  # noqa: PLC0415  not on Windows
    except ImportError:
        yield _Journal(target, None)
        return
    path = target.parent / f".{target.name}.lock"
    lock = _open_lock(path)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed the file in between: then this lock is on nothing.
            alone = os.path.samestat(path.stat(), os.fstat(lock))
        except OSError:
            alone = False
        if not alone:
            raise OSError(f"Another process is writing to {target}; wait until it has ended, or choose another folder.")
        try:
            yield _Journal(target, lock)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    """The lock file, made if need be, to read and append to; a link or somebody else's file is left alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):  # Linux's and BSD's word for a link
            raise
        raise OSError(f"{path} is a link where this folder's lock file should be; remove it.") from None
    ours = os.fsencode(path.name.removesuffix("lock"))  # what the names in it begin with
    begin = os.pread(lock, len(ours), 0) if stat.S_ISREG(os.fstat(lock).st_mode) else b"a pipe"
    if begin not in (b"", ours):
        os.close(lock)
        raise OSError(f"{path} is not this package's, but where this folder's lock file should be; move it away.")
    return lock


def _swap(folder: Path, target: Path, journal: _Journal) -> None:
    """Rename ``folder`` to ``target``; what was there goes only after that has worked."""
    if not target.exists():
        folder.rename(target)
        return
    aside = journal.new_folder("replaced", 0o700)
    old = aside / target.name
    try:
        target.rename(old)
        try:
            folder.rename(target)
        except BaseException:
            old.rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
