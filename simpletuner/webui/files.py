"""Small text files that several writers may meet in: replaced as a whole, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_BYTES = 2**21
"""A configuration or list of data sets that is larger is not read."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)  # file systems without locks
_in_this_process = threading.Lock()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """The only one that changes files of an existing folder, among the servers that ask here. Raises ``OSError``."""
    with _in_this_process:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            yield
        finally:
            os.close(descriptor)  # and the lock ends


def read_small(path: Path) -> bytes:
    """The bytes of a regular file of at most :data:`MOST_BYTES`. Raises ``OSError``, or ``ValueError`` with why not."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not keep us waiting
    with open(descriptor, "rb") as file:  # noqa: PTH123 (of a descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is no regular file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES // 2**20} MiB")
    return content


def version_of(content: bytes) -> str:
    """What tells this content of a file from any other."""
    return hashlib.sha256(content).hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; one that is there keeps its mode, and is untouched if this fails.

    Raises ``OSError``.
    """
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only", str(path))
    beside = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:  # noqa: PTH123 (of a descriptor)
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk. Raises ``OSError``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
