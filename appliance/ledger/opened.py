"""An open ledger: its database, its anchor, its keys, and the proof of whatever is read in a snapshot of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy import Connection

from appliance.errors import ApplianceError, IntegrityError
from appliance.ledger import schema, stated
from appliance.ledger.anchor import Anchor
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database
from appliance.ledger.heads import check_against_anchor
from appliance.ledger.keyring import Keyring, KeySet, build, leaves_about_keys
from appliance.ledger.log import Clock
from appliance.ledger.note import Checkpoint
from appliance.ledger.proving import Prover, Snapshot
from appliance.ledger.register import Register
from appliance.ledger.signing import load_verifiers

FOREIGN_KEYS = "the signing keys are not those of this ledger"


class Opened:
    """What a reader and a writer of a ledger have in common; a context manager."""

    def __init__(self, config: LedgerConfig, database: Database, clock: Clock) -> None:
        self._config = config
        self._database = database
        self._clock = clock
        self._local = load_verifiers(config.signing_dir)
        self._built: tuple[tuple[bytes, ...], Keyring] | None = None
        self._anchor = Anchor(config.anchor)
        self._prover: Prover | None = Prover(self._anchor, config.register, self._local[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def verifier_keys(self) -> tuple[str, ...]:
        """The log's newest public keys as C2SP verifier keys; those of this machine where the log names others."""
        try:
            return self.key_sets[-1].texts
        except IntegrityError:
            return KeySet(0, self._local).texts

    @property
    def key_sets(self) -> tuple[KeySet, ...]:
        """All keys that the log ever had, oldest first."""
        with self._database.read() as connection:
            return self._keyring(connection).sets

    def keys_at(self, size: int) -> KeySet:
        """Find the keys that sign tree heads of this size."""
        with self._database.read() as connection:
            return self._keyring(connection).at(size)

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._database.close()
            raise

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[Connection, Snapshot]]:
        """Open a snapshot; the anchor is read before it, since others may write and anchor while it is being read."""
        anchored = None if self._prover is None else self._anchor.text()
        with self._database.read() as connection:
            yield connection, Snapshot(anchored, lambda: self._prove(connection, anchored)[0])

    def _prove(self, connection: Connection, anchored: str | None) -> tuple[Register, Checkpoint]:
        if self._prover is None:
            raise ApplianceError("a ledger that was opened unchecked proves nothing")
        return self._prover.prove(connection, lambda: self._keyring(connection), anchored)

    def _check(self, connection: Connection, anchored: str | None) -> dict[str, str]:
        """Check that the ledger is what it states and continues its anchor; what it states of its definitions."""
        definitions = stated.read_definitions(connection)
        problems = schema.schema_problems(connection, definitions)
        if problems:
            raise IntegrityError(problems[0], where=self._database.where)
        ring = build(leaves_about_keys(connection), self._local)
        check_against_anchor(connection, self._anchor, ring, anchored)
        self._keyring(connection)
        return definitions

    def _keyring(self, connection: Connection) -> Keyring:
        """Read the keys of the log as this transaction sees it; ours must be among them."""
        leaves = leaves_about_keys(connection)
        if self._built is None or self._built[0] != leaves:
            self._built = leaves, build(leaves, self._local)
        if not self._built[1].has(self._local):
            raise IntegrityError(FOREIGN_KEYS, where=str(self._config.signing_dir))
        return self._built[1]
