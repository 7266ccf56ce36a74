"""Small files that must survive power loss: written beside, fsynced, renamed, directory fsynced."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import WillNotFit

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace(path: Path, data: bytes) -> None:
    """Make `path` (mode 0600) hold `data`, wholly or not at all. Raises `WillNotFit` when the disk is full or fails."""
    beside = path.with_name(f".{path.name}.new")
    with explained(path):
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(beside, path)
        sync_directory(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file over another one, with both directories fsynced."""
    with explained(target):
        os.rename(source, target)
        sync_directory(target.parent)
        sync_directory(source.parent)


def sync_directory(path: Path) -> None:
    """Fsync a directory, so that the names in it survive power loss. Raises `WillNotFit` when the disk fails."""
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full or failing disk into `WillNotFit`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise WillNotFit("the disk is full", where=str(path), hint="free some space; nothing was lost") from None
        if error.errno == errno.EIO:
            raise WillNotFit("the disk fails", where=str(path), hint="nothing acknowledged was lost") from None
        raise
