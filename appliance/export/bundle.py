"""The payload of a sealed directory, put together in a directory that the caller makes durable and renames.

What is copied is checked on the way: the bytes that arrive are digested, not the bytes that were there before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import IntegrityError
from appliance.export import evidence, verify
from appliance.export.manifest import NAME, Manifest, check_paths
from appliance.values import FileDigest

VERIFIER = "verify.py"
_CHUNK = 1 << 20


def verifier_source() -> bytes:
    """Read the stand-alone verifier, byte for byte as it goes into every sealed directory."""
    return Path(verify.__file__).read_bytes()


@dataclass(slots=True)
class Assembly:
    """A sealed directory that is being put together at `path`, an empty directory."""

    path: Path
    _files: list[FileDigest] = field(default_factory=list)

    def add(self, documents: Mapping[str, bytes]) -> None:
        """Write payload files. Raises `UsageError` for a name that cannot stand in a bundle."""
        self._admit(documents)
        for name, data in documents.items():
            self._target(name).write_bytes(data)
            self._files.append(FileDigest(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))

    def copy(self, source: Path, prefix: str, files: Iterable[FileDigest]) -> None:
        """Copy the recorded `files` of `source` below `prefix`.

        Raises:
          UsageError: a file has a name that cannot stand in a bundle.
          IntegrityError: a file is not the recorded one.
        """
        recorded = [file.model_copy(update={"path": f"{prefix}/{file.path}"}) for file in files]
        self._admit(file.path for file in recorded)
        for file in recorded:
            origin = source / file.path.removeprefix(f"{prefix}/")
            if _copy(origin, self._target(file.path)) != (file.bytes, file.sha256):
                raise IntegrityError("the file is not the one that was recorded", where=str(origin))
        self._files += recorded

    def files(self) -> tuple[FileDigest, ...]:
        """List every payload file so far, sorted by path."""
        return tuple(sorted(self._files, key=lambda file: file.path))

    def seal(self, manifest: Manifest, proofs: evidence.Evidence) -> None:
        """Write the manifest and `ledger/`; nothing may be added after that."""
        (self.path / NAME).write_bytes(manifest.encode())
        evidence.write(self.path, proofs)

    def _admit(self, paths: Iterable[str]) -> None:
        check_paths([*(file.path for file in self._files), *paths])

    def _target(self, name: str) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy one file; size and SHA-256 of what was written."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(_CHUNK):
            writer.write(block)
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
