"""Files and directories that are there whole or not at all, and locks: the only code that makes something last.

Order of every write: temporary file in the same directory, fsync, rename, fsync of the directory. A failed fsync is
final (the kernel may have dropped the pages), so it is never tried again: the temporary file goes and the error stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import UsageError, WillNotFit

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors_explained(where: Path) -> Iterator[None]:
    """Turn a full or failing disk inside the block into `WillNotFit` naming `where`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "free some space and try again; nothing was lost"
            raise WillNotFit("the disk is full or the quota is used up", hint=hint, where=str(where)) from None
        if error.errno == errno.EIO:
            raise WillNotFit("the disk fails", hint="nothing acknowledged was lost", where=str(where)) from None
        raise


# --- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def staged(path: Path, mode: int = 0o600, *, replace: bool = True) -> Iterator[int]:
    """Offer a descriptor to write to; the bytes become `path` when the block ends well, and vanish when it does not.

    The temporary file has one name for each `path` and is locked while it is written: writers of one file take turns,
    what a crash left is used again, and `sweep` can tell it from a live writer's.

    Args:
      path: the final name; its directory must exist.
      mode: permission bits of the final file, whatever the umask.
      replace: False refuses with `UsageError` if `path` already exists.

    Raises:
      WillNotFit: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name[:100]}{PARTIAL}")
    with disk_errors_explained(path):
        fd = _open_locked(temporary, mode)
        try:
            os.ftruncate(fd, 0)
            if stat.S_IMODE(os.fstat(fd).st_mode) != mode:  # the umask, or a leftover; a worker may change no modes
                os.fchmod(fd, mode)
            yield fd
            os.fsync(fd)
            _publish(temporary, path, replace=replace)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        fsync_directory(path.parent)


def _open_locked(temporary: Path, mode: int) -> int:
    """Open and lock a file; again if it was published or swept away between the two."""
    while True:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _names(temporary, fd):
            return fd
        os.close(fd)


def _names(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _publish(temporary: Path, path: Path, *, replace: bool) -> None:
    if replace:
        os.rename(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike rename, fails if the name is taken
    except FileExistsError:
        raise UsageError("the file already exists and is not replaced", where=str(path)) from None
    temporary.unlink()


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` to `fd`, however short single writes are."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, replace: bool = True) -> None:
    """Write `path` so that a crash leaves the old content or the new, never a mixture. Raises as `staged` does."""
    with staged(path, mode, replace=replace) as fd:
        write_all(fd, data)


# --- directories ----------------------------------------------------------------------------------------------------


@contextmanager
def staged_directory(path: Path, mode: int = 0o700) -> Iterator[Path]:
    """Offer a new directory to fill; it becomes `path` when the block ends well, and vanishes when it does not.

    Directories above it are made where they are missing. Its temporary name is locked as in `staged`.

    Raises:
      UsageError: `path` is there and holds something.
      WillNotFit: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name[:100]}{PARTIAL}")
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = _make_locked(temporary, mode)
        try:
            yield temporary
            fsync_tree(temporary)
            commit(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(fd)


def _make_locked(temporary: Path, mode: int) -> int:
    """Make and lock an empty directory; what a crash left of one is removed."""
    while True:
        with contextlib.suppress(FileExistsError):
            temporary.mkdir(mode=mode)
        with contextlib.suppress(FileNotFoundError):  # published or removed by its maker between the two
            fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _names(temporary, fd) and not any(temporary.iterdir()):
                return fd
            if _names(temporary, fd):
                shutil.rmtree(temporary)
            os.close(fd)


def commit(tmp: Path, final: Path) -> None:
    """Make a finished file or directory durable under its final name.

    The content of a directory must have been through `fsync_tree`.

    Raises:
      UsageError: `final` is a directory with content.
      WillNotFit: the disk is full or fails.
    """
    with disk_errors_explained(final):
        _fsync(tmp)
        try:
            os.rename(tmp, final)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise UsageError("the directory already exists and is not replaced", where=str(final)) from None
            raise
        fsync_directory(final.parent)
        if tmp.parent != final.parent:
            fsync_directory(tmp.parent)


def make_directory(path: Path) -> None:
    """Make a directory (mode 0700), unless it is there, and its name durable. Raises `WillNotFit` on a full disk."""
    with disk_errors_explained(path):
        path.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(path.parent)


def fsync_tree(directory: Path) -> None:
    """Make every file and every name below `directory` durable, innermost first."""
    with disk_errors_explained(directory):
        for parent, _, names in os.walk(directory, topdown=False):
            for name in names:
                _fsync(Path(parent, name))
            fsync_directory(Path(parent))


def fsync_directory(path: Path) -> None:
    """Make the names in one directory durable. Raises `WillNotFit` when the disk fails."""
    with disk_errors_explained(path):
        _fsync(path, os.O_DIRECTORY)


def _fsync(path: Path, flag: int = os.O_NOFOLLOW) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- locks ----------------------------------------------------------------------------------------------------------


def lock(path: Path, *, wait: bool = True, shared: bool = False, make: bool = True) -> int:
    """Lock a directory or a file; closing the descriptor unlocks it. A file that is not there is made (mode 0600).

    Raises:
      BlockingIOError: somebody else holds the lock and `wait` is false.
      FileNotFoundError: nothing is there and `make` is false.
    """
    kind = os.O_DIRECTORY if path.is_dir() else os.O_NOFOLLOW | (os.O_CREAT if make else 0)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | kind, 0o600)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False, make: bool = True) -> Iterator[int]:
    """Hold the `lock` of a file or directory; the descriptor that holds it."""
    fd = lock(path, wait=wait, shared=shared, make=make)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def unswept(directory: Path) -> Iterator[None]:
    """Keep `sweep` away from `directory` meanwhile: for whole files that wait there under a name that it removes."""
    with locked(directory, shared=True):
        yield


def sweep(directory: Path) -> int:
    """Remove what crashed writers left in `directory`; a file that a live writer has locked stays.

    Returns:
      How many files were removed; none while somebody holds the directory `unswept`.
    """
    try:
        with locked(directory, wait=False):
            return sum(map(_sweep_one, sorted(directory.glob(f".*{PARTIAL}"))))
    except BlockingIOError:
        return 0


def _sweep_one(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # its writer published it, or another sweep removed it, since the listing
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except (BlockingIOError, FileNotFoundError):  # a live writer's, or published since it was opened
        return False
    finally:
        os.close(fd)
