"""Proving what is read: the register, followed to the end of the log and compared with the anchor in each snapshot.

The register comes from leaf bytes, so nothing that the database says beside them is believed: no cached column, no
node, no head. Whoever edits a row, or puts back an older one with its older entry, is refused for as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import Connection

from appliance.errors import Busy, IntegrityError
from appliance.events.ledger import LedgerRekeyed
from appliance.ledger.anchor import Anchor
from appliance.ledger.heads import anchored_checkpoint, check_continues
from appliance.ledger.keyring import Keyring
from appliance.ledger.log import Head, read_head
from appliance.ledger.note import Checkpoint, VerifierKey
from appliance.ledger.register import Found, Register

_KEPT_EVERY = 64
"""Entries, or one in so many, by which the copy of the register may lag: reading on costs about 5 us each."""


class Prover:
    """Proves snapshots of one ledger, one after the other; what it has once seen it demands of every later one.

    Args:
      anchor: the ledger's anchor.
      path: file of the register's copy; None keeps none.
      key: the log's Ed25519 key, which signs the copy.
    """

    def __init__(self, anchor: Anchor, path: Path | None, key: VerifierKey) -> None:
        self._anchor, self._path, self._key = anchor, path, key
        self._register: Register | None = None
        self._kept = 0
        self._compared: tuple[str | None, Checkpoint] | None = None
        self._ring: tuple[Found | None, Keyring] | None = None

    def prove(
        self, connection: Connection, read_ring: Callable[[], Keyring], anchored: str | None
    ) -> tuple[Register, Checkpoint]:
        """Follow the log to its end in this snapshot, and compare it with the anchor.

        Args:
          connection: the snapshot.
          read_ring: reads the log's keys in this snapshot; called where they may have changed.
          anchored: text of the anchor, read before the snapshot was taken or while nobody else can write.

        Returns:
          The register of the snapshot, and what the anchor says.

        Raises:
          IntegrityError: the log is not what was anchored, or seen before.
        """
        register, compared = self._register or self._load(), self._compared
        self._register = self._compared = None  # what was followed half way, or into a false log, is not gone on with
        register.follow(connection)
        head = read_head(connection)
        if register.size > head.size:
            raise IntegrityError(
                f"the database has {head.size} entries, {register.size} were seen before: it was rolled back or cut off"
            )
        if head != Head(register.size, tuple(register.frontier)):
            raise IntegrityError("the head of the ledger does not follow from its entries")
        if compared is None or compared[0] != anchored:  # else the log only grew since
            ring = self._keys(register, read_ring)
            checkpoint = anchored_checkpoint(anchored, self._anchor, ring)
            check_continues(connection, checkpoint, Checkpoint(ring.origin, register.size, register.root))
            compared = anchored, checkpoint
        self._register, self._compared = register, compared
        return register, compared[1]

    def _keys(self, register: Register, read_ring: Callable[[], Keyring]) -> Keyring:
        """Read the keys again only when another entry changes them than the last time."""
        told = register.newest(LedgerRekeyed.type)
        if self._ring is None or self._ring[0] != told:
            self._ring = told, read_ring()
        return self._ring[1]

    def keep(self, sign: Callable[[bytes], bytes]) -> None:
        """Write a signed copy of the register as it was proved last; the caller made sure that it is all signed."""
        if self._register is not None and self._path is not None:
            self._register.save(self._path, sign)
            self._kept = self._register.size

    @property
    def lags(self) -> bool:
        """Whether a new copy of the register is due."""
        if self._path is None or self._register is None:
            return False
        return self._register.size >= self._kept + max(_KEPT_EVERY, self._kept // _KEPT_EVERY)

    def _load(self) -> Register:
        loaded = Register.load(self._path, self._key) if self._path is not None else None
        register = loaded or Register()
        self._kept = register.size
        return register


class Snapshot:
    """The register of one snapshot, which is proved when it is first asked for.

    Args:
      anchored: text of the anchor as it was before.
      prove: proves the snapshot.
    """

    def __init__(self, anchored: str | None, prove: Callable[[], Register]) -> None:
        self.anchored = anchored
        self._prove = prove
        self._at: tuple[Register, int] | None = None

    def register(self) -> Register:
        """Prove the snapshot, or say again what was proved. Raises `Busy` where a later one has been proved since."""
        if self._at is None:
            register = self._prove()
            self._at = register, register.size
        register, size = self._at
        if register.size != size:
            raise Busy("the ledger has grown since it was looked at", hint="try again")
        return register

    def rows(self, table: str) -> Mapping[str, str]:
        """Say which rows a table has: their keys, and the SHA-256 of each."""
        return self.register().rows(table)
