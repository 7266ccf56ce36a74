"""Directories known by the digest of what lies in them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rfc8785

from appliance.errors import ArtefactMissing, IntegrityError
from appliance.values import FileDigest

_READERS = 8


def tree_digest(directory: Path) -> tuple[str, tuple[FileDigest, ...]]:
    """Digest a directory of regular files.

    Returns:
      SHA-256 (hex) over the canonical JSON (RFC 8785) of `[[path, bytes, sha256], ...]`, sorted by path with `/`
      between its parts, and the same list as values. Empty directories and permissions do not count.

    Raises:
      ArtefactMissing: `directory` is not there.
      IntegrityError: it holds something else than regular files, or a name that is not UTF-8.
    """
    found = _walk(directory)
    digests = _sha256_all([path for _, path in found])
    files = tuple(
        FileDigest(path=name, bytes=path.stat().st_size, sha256=digest)
        for (name, path), digest in zip(found, digests, strict=True)
    )
    rows = rfc8785.dumps([[file.path, file.bytes, file.sha256] for file in files])
    return hashlib.sha256(rows).hexdigest(), files


def verify_tree(directory: Path, files: Iterable[FileDigest]) -> None:
    """Compare a directory with the files it was recorded with.

    Raises:
      ArtefactMissing: `directory` is not there.
      IntegrityError: a file is missing, is not listed or has other bytes; `where` names the first one.
    """
    present = dict(_walk(directory))
    expected = {file.path: file for file in files}
    known = sorted(present.keys() & expected.keys())
    digests = dict(zip(known, _sha256_all([present[name] for name in known]), strict=True))
    for name in sorted(present.keys() | expected.keys()):
        where = str(directory / name)
        if name not in present:
            raise IntegrityError("the file is missing", where=where)
        if name not in expected:
            raise IntegrityError("the file does not belong here", where=where)
        if present[name].stat().st_size != expected[name].bytes or digests[name] != expected[name].sha256:
            raise IntegrityError("the file was altered", where=where)


def _walk(directory: Path) -> list[tuple[str, Path]]:
    """List relative name and path of every file below `directory`, sorted by name."""
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


def _sha256_all(paths: list[Path]) -> list[str]:
    """Digest files side by side: a large model is several of them, and hashing leaves the interpreter alone."""
    if len(paths) < 2:
        return [_sha256(path) for path in paths]
    with ThreadPoolExecutor(max_workers=min(len(paths), _READERS)) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
