"""Small files that must survive power loss: written beside, fsynced, renamed, directory fsynced."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import WillNotFit


def replace(path: Path, data: bytes) -> None:
    """Make `path` (mode 0600) hold `data`, wholly or not at all. Raises `WillNotFit` when the disk is full."""
    beside = path.with_name(f".{path.name}.new")
    with _full_disk(path):
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(beside, path)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Fsync a directory, so that the names in it survive power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WillNotFit("the disk is full", where=str(path), hint="free some space; nothing was lost") from None
        raise
