"""The anchor: the last signed tree head in a file outside the database, so that a rolled-back database is noticed."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import IntegrityError
from appliance.files import locked, write_atomic
from appliance.ledger.keyring import Keyring
from appliance.ledger.note import Checkpoint


class Anchor:
    """One file holding one signed note; it only ever advances.

    Args:
      path: the file; its directory must exist when it is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self) -> str | None:
        """Read the anchored note as it stands there, unchecked, or None where there is no file."""
        try:
            return self.path.read_bytes().decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise IntegrityError("the anchor is damaged", where=str(self.path)) from None

    def open(self, note: str, ring: Keyring) -> Checkpoint:
        """Open a note that was read here. Raises `IntegrityError` when it does not verify."""
        try:
            return ring.open_outside(note)
        except IntegrityError as error:
            raise IntegrityError(f"the anchor does not verify: {error.message}", where=str(self.path)) from None

    def read(self, ring: Keyring) -> tuple[str, Checkpoint] | None:
        """Read the anchored note, or None where there is no file. Raises `IntegrityError` when it does not verify."""
        note = self.text()
        return None if note is None else (note, self.open(note, ring))

    def advance(self, note: str, size: int, ring: Keyring) -> None:
        """Make `note` the anchor and fsync it, unless another process has anchored a larger tree meanwhile."""
        with locked(self.path.parent):
            current = self.read(ring)
            if current is None or current[1].size < size:
                write_atomic(self.path, note.encode())

    def outside(self, other: Path) -> bool:
        """Tell whether the anchor is on another file system than `other`: a rollback of one then spares the other."""
        try:
            return self.path.stat().st_dev != other.stat().st_dev
        except OSError:
            return False
