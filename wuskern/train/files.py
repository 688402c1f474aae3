"""Files that are whole or absent, whenever the process dies, and that one process at a time writes."""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = "lock of wuskern train"
OWN = secrets.token_hex(8)  # in the names of all temporary files of this process, and in its locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the errors of file systems without locks

_held: set[int] = set()  # descriptors of this process's locks


class NotWritten(OSError):
    """An error on writing a file. What had its name before is whole."""


class _Raw(io.FileIO):
    """A file that remembers why it could not be written: who writes through it may raise something else."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` in one step at the end: a reader, or a crash, sees the old file or the new one.

    It is written beside ``path`` under a name that no file has, so that two processes cannot mix theirs. If ``path`` is a
    link, the link is replaced, and what it leads to stays. An error or Ctrl-C inside leaves ``path`` alone. What a killed
    process had begun is removed by the next one that has its lock.

    Raises:
        NotWritten: the disk is full, the folder is not there, and the like.
    """
    temporary = path.with_name(f".{path.name}.{OWN}-{secrets.token_hex(4)}.tmp")
    try:
        raw = _Raw(temporary, "x")
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        with io.BufferedWriter(raw) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = raw.failure or error
        if isinstance(error, Exception) and isinstance(cause, OSError):
            raise _not_written(path, cause) from error
        raise


def _not_written(path: Path, error: OSError) -> NotWritten:
    return NotWritten(f"{path} cannot be written: {error.strerror or error}")


def opened(path: Path) -> BinaryIO:
    """A regular file, open for reading. Anything else raises ``OSError``: a pipe could be waited for without end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"it is no regular file: {str(path)!r}")
    return os.fdopen(handle, "rb")


def check_room(folder: Path, largest: int, together: int) -> None:
    """Tries whether ``folder`` takes a file of ``largest`` bytes, and ``together`` bytes in all; leaves nothing in it.

    Raises:
        OSError: files cannot be written there, or none of that size. ValueError: the disk has less than ``together`` free.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.truncate(largest)
    free = shutil.disk_usage(folder).free
    if free < together:
        raise ValueError(f"expected {together / 2**20:.1f} MiB free in {folder}, got {free / 2**20:.1f}")


# ---- locks ----------------------------------------------------------------------------------------------------------


def lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """A block in which no other process can claim ``path``.

    A file beside it, ``lock_of(path)``, names this process. The lock itself is the kernel's: it ends with the process, however
    that ends, and the next process removes what this one had begun to write. A file system without locks gives none.

    Raises:
        ValueError: another process has claimed it, which is named; or a file of somebody else has the lock's name.
        OSError: no lock can be written there.
    """
    lock = lock_of(path)
    handle, locks = _locked(lock, path)
    _held.add(handle)
    try:
        before = _holder(handle, lock)
    except BaseException:  # somebody's file, which stays
        _let_go(handle)
        raise
    try:
        if locks and before is not None:
            _remove_leftovers(path.parent, before)
        _name_this_process(handle)
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is let go: another process may have it right after
        _let_go(handle)


def _locked(lock: Path, path: Path) -> tuple[int, bool]:
    """The open lock, and whether the file system has locks at all."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        locks = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            user = _user(handle, lock)
            os.close(handle)
            raise ValueError(f"expected a file that no other process writes, got {path}, in use by {user}") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            locks = False
        if _is_still(lock, handle):
            return handle, locks
        os.close(handle)  # its holder removed it meanwhile: what is locked now has no name


def _is_still(lock: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(lock, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder(handle: int, lock: Path) -> dict[str, Any] | None:
    """What the lock says about the process that wrote it; None if nothing yet. Raises ``ValueError`` for any other file."""
    regular = stat.S_ISREG(os.fstat(handle).st_mode)
    try:
        content = json.loads(text) if regular and (text := os.pread(handle, 2**12, 0)) else None
    except (ValueError, RecursionError):
        content = ()
    if not regular or not (content is None or (isinstance(content, dict) and content.get("format") == FORMAT)):
        raise ValueError(f"expected no file of that name, or a lock of wuskern, got {lock}, which is something else")
    return content


def _user(handle: int, lock: Path) -> str:
    with contextlib.suppress(ValueError):
        if holder := _holder(handle, lock):
            return f"process {holder.get('pid')} on {holder.get('host')}"
    return "another process"


def _name_this_process(handle: int) -> None:
    text = json.dumps({"format": FORMAT, "pid": os.getpid(), "host": socket.gethostname(), "own": OWN})
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def _remove_leftovers(folder: Path, dead: dict[str, Any]) -> None:
    """Removes the files that a process was writing when it died: its own mark is in their names."""
    if re.fullmatch(r"[0-9a-f]{16}", str(dead.get("own"))):
        for leftover in folder.glob(f".*.{dead['own']}-*.tmp"):
            leftover.unlink(missing_ok=True)


def _let_go(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _let_go_in_child() -> None:
    """Closes the parent's locks in a forked worker, which would keep them if it outlives the parent."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
