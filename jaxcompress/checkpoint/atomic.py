"""Files that are replaced completely or not at all.

A draft in the same folder is written, forced to the disk, and renamed to the file: readers and a
machine that loses its power see the old file or the new one. Costs one copy on the disk meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike[str], data: bytes | bytearray) -> None:
    """Replace a file by the given bytes, or leave it as it was.

    Args:
        path: the file. A new one gets the mode that the umask gives, an existing one keeps its own;
            of a symbolic link the target is written.
        data: all of the new content.

    Raises:
        OSError: where the folder or the file is not writable, or the disk is full.
    """
    with draft_of(path) as file:
        file.write(data)


@contextlib.contextmanager
def draft_of(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write in place of another one, which it replaces at the end of the block.

    Args:
        path: the file, as for `write_atomically`.

    Yields:
        An empty binary file. Where the block raises it is removed, and nothing has changed.
    """
    # the link stays, and the draft is on the same file system as what it replaces
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    # no name that is derived from the file's, which may be as long as names can be
    draft = target.parent / f".jaxcompress-{secrets.token_hex(8)}"
    handle = os.open(
        draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
    )
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.chmod(draft, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    _sync_folder(target.parent)


def _mode_of(target: Path) -> int | None:
    """The mode of a file that exists, or None; what cannot be replaced by a file is refused."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{target} is a folder: give the name of a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{target} is no regular file, and would be replaced by one")
    effective = os.access in os.supports_effective_ids
    if not os.access(target, os.W_OK, effective_ids=effective):
        raise PermissionError(f"{target} is write-protected: change its mode, or give another name")
    return stat.S_IMODE(status.st_mode)


def _sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
