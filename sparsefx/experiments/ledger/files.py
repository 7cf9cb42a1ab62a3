"""Files to which several processes write at once: a lock, an append that loses no line, a replacement."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread is inside ``locked`` for this folder.

    The lock is an empty file ``.lock`` in the folder, which is made. It stays there: deleting it while
    another process waits for it would let two in. The system frees the lock of a process that is killed. A
    file system without locks keeps no process out; even there :func:`append_line` loses no line.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("ab") as file:
        _wait_for(file)
        yield  # closing the file frees the lock


def append_line(path: Path, line: str) -> None:
    """Append a line to a file by one write; the file is made.

    A last line that was cut short by a crash or saved without its end gets one first.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the file is as it was.
    """
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        content = line.encode() + b"\n"
        if size and _last_byte(file, size) != b"\n":
            content = b"\n" + content
        written = file.write(content)
        if written != len(content):
            file.truncate(size)
            raise OSError(errno.ENOSPC, "cannot be written whole", str(path))
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> Path:
    """Write beside the file and move it there, so that it is never cut short; its folder is made.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")  # one that a killed run leaves is written over
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
    return path


def _last_byte(file: IO[bytes], size: int) -> bytes:
    file.seek(size - 1)
    return file.read(1)


def _wait_for(file: IO[bytes]) -> None:
    try:
        _lock(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        while True:
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except PermissionError:  # somebody has it
                time.sleep(0.01)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
