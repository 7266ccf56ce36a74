"""Files that are either there whole or not there at all, and directories known by their digest.

Order of every write: temporary file in the same directory, fsync, rename, fsync of the directory. A failed fsync is
final (the kernel may have dropped the pages), so it is never tried again: the temporary file goes and the error stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import rfc8785

from appliance.errors import ArtefactMissing, IntegrityError, UsageError, WillNotFit
from appliance.records import ModelFile

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_refused(where: Path) -> Iterator[None]:
    """Turns "no space left" and "quota exceeded" inside the block into `WillNotFit` naming `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise WillNotFit(
            "the disk is full or the quota is used up", hint="free some space and try again", where=str(where)
        ) from None


@contextmanager
def staged(path: Path, mode: int = 0o600, *, replace: bool = True) -> Iterator[int]:
    """A descriptor to write to; the bytes become `path` when the block ends well, and vanish when it does not.

    The descriptor is locked while it is written, so that `sweep` can tell a live writer from what a crash left.

    Args:
      path: the final name; its directory must exist.
      mode: permission bits of the final file, whatever the umask.
      replace: False refuses with `UsageError` if `path` already exists.

    Raises:
      WillNotFit: the disk is full.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PARTIAL}")
    with full_disk_refused(path):
        fd = _locked(temporary, mode)
        try:
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


def _locked(temporary: Path, mode: int) -> int:
    """Creates a file and locks it; again if a sweep came between the two and took it for a dead writer's."""
    while True:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


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
    """Writes all of `data` to `fd`, however short single writes are."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, replace: bool = True) -> None:
    """Writes `path` so that a crash leaves the old content or the new, never a mixture. Raises as `staged` does."""
    with staged(path, mode, replace=replace) as fd:
        write_all(fd, data)


def commit(tmp: Path, final: Path) -> None:
    """Makes a finished file or directory durable under its final name.

    The content of a directory must have been through `fsync_tree`. Raises `WillNotFit` on a full disk and `UsageError`
    if `final` is a directory with content.
    """
    with full_disk_refused(final):
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


@contextmanager
def unswept(directory: Path) -> Iterator[None]:
    """Keeps `sweep` away from `directory` meanwhile: for whole files that wait there under a name that it removes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def sweep(directory: Path) -> int:
    """Removes what crashed writers left in `directory`; a file that a live writer has locked stays.

    Returns:
      How many files were removed; none while somebody holds the directory `unswept`.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _sweep(directory)
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)


def _sweep(directory: Path) -> int:
    removed = 0
    for path in sorted(directory.glob(f".*{PARTIAL}")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # its writer published it, or another sweep removed it, since the listing
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
        except (BlockingIOError, FileNotFoundError):  # a live writer's, or published since it was opened
            continue
        finally:
            os.close(fd)
    return removed


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    """Makes the names in one directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Makes a directory (mode 0700), unless it is there, and its name durable. Raises `WillNotFit` on a full disk."""
    with full_disk_refused(path):
        path.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(path.parent)


def fsync_tree(directory: Path) -> None:
    """Makes every file and every name below `directory` durable, innermost first."""
    with full_disk_refused(directory):
        for parent, _, names in os.walk(directory, topdown=False):
            for name in names:
                _fsync(Path(parent, name))
            fsync_directory(Path(parent))


def tree_digest(directory: Path) -> tuple[str, tuple[ModelFile, ...]]:
    """The digest of a directory of regular files.

    Returns:
      SHA-256 (hex) over the canonical JSON (RFC 8785) of `[[path, bytes, sha256], ...]`, sorted by path with `/`
      between its parts, and the same list as values. Empty directories and permissions do not count.

    Raises:
      ArtefactMissing: `directory` is not there.
      IntegrityError: it holds something else than regular files, or a name that is not UTF-8.
    """
    files = tuple(
        ModelFile(path=name, bytes=path.stat().st_size, sha256=_sha256(path)) for name, path in _walk(directory)
    )
    rows = rfc8785.dumps([[file.path, file.bytes, file.sha256] for file in files])
    return hashlib.sha256(rows).hexdigest(), files


def verify_tree(directory: Path, files: Iterable[ModelFile]) -> None:
    """Compares a directory with the files it was recorded with.

    Raises:
      ArtefactMissing: `directory` is not there.
      IntegrityError: a file is missing, is not listed or has other bytes; `where` names the first one.
    """
    present = dict(_walk(directory))
    expected = {file.path: file for file in files}
    for name in sorted(present.keys() | expected.keys()):
        where = str(directory / name)
        if name not in present:
            raise IntegrityError("the file is missing", where=where)
        if name not in expected:
            raise IntegrityError("the file does not belong here", where=where)
        if present[name].stat().st_size != expected[name].bytes or _sha256(present[name]) != expected[name].sha256:
            raise IntegrityError("the file was altered", where=where)


def _walk(directory: Path) -> list[tuple[str, Path]]:
    """Relative name and path of every file below `directory`, sorted by name."""
    if not directory.is_dir():
        raise ArtefactMissing("the directory is not here", where=str(directory))
    found = []
    for parent, directories, names in os.walk(directory):
        for name in (*names, *directories):
            path = Path(parent, name)
            _refuse_unusual(path, directory=name in directories)
        found += [(Path(parent, name).relative_to(directory).as_posix(), Path(parent, name)) for name in names]
    return sorted(found)


def _refuse_unusual(path: Path, *, directory: bool) -> None:
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    if shown != str(path):
        raise IntegrityError("the name is not UTF-8", where=shown)
    mode = path.lstat().st_mode
    if not (stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode)):
        raise IntegrityError("neither a regular file nor a directory (links are not followed)", where=shown)


def _sha256(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
