"""Reading a ledger: entries, rows, proofs, tree heads, verification, copies for auditors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from appliance.errors import ArtefactMissing, IntegrityError, Stale, UsageError
from appliance.events.event import Event
from appliance.ledger import merkle, proof, schema, witness
from appliance.ledger.bodies import unseal
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database
from appliance.ledger.dialect import Finding
from appliance.ledger.entries import (
    Entry,
    Filter,
    read_all_registered,
    read_body,
    read_entries,
    read_entry,
    read_leaves,
    require_registered,
)
from appliance.ledger.heads import TreeHead, anchored_checkpoint, first_head_over, last_tree_head
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.log import Clock, StoredTree, now
from appliance.ledger.note import VerifierKey
from appliance.ledger.opened import Opened
from appliance.ledger.proving import Snapshot
from appliance.ledger.snapshot import write_snapshot
from appliance.ledger.transaction import Reading
from appliance.ledger.verify import Verification, verify_ledger


class LedgerReader(Opened):
    """An open ledger that cannot be changed: it has nothing that writes, and its connection refuses to.

    Made by `open`; a context manager. `ledger.Ledger` is one that can be changed.
    """

    @classmethod
    def open(cls, config: LedgerConfig, *, checked: bool = True, clock: Clock = now) -> LedgerReader:
        """Open a ledger for reading.

        It is checked first: its tables and guards must be those that it states, and it must continue what was
        anchored. Then what is read of it is proved. Only a reader that wants to say what is wrong with it, as `verify`
        does, leaves `checked` out.

        Raises:
          ArtefactMissing: there is no ledger.
          IntegrityError: it is damaged, was altered or is behind its anchor.
        """
        ledger = LedgerReader(config, Database(config.url, writable=False), clock)
        if not checked:
            ledger._prover = None
            return ledger
        with ledger._closed_on_error(), ledger._snapshot() as (connection, snapshot):
            ledger._check(connection, snapshot.anchored)
        return ledger

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """Read the catalog in one snapshot. What is read is proved, unless the ledger was opened unchecked."""
        with self._snapshot() as (connection, snapshot):
            yield Reading(connection, None if self._prover is None else snapshot.rows)

    def findings(self) -> list[Finding]:
        """Say how the database is set up, for people."""
        return self._database.findings()

    def head(self, covering: int | None = None) -> TreeHead | None:
        """Read the newest signed tree head; the first one that covers entry `covering` where an index is given."""
        with self._database.read() as connection:
            if covering is not None:
                return first_head_over(connection, covering, self._keyring(connection))
            return last_tree_head(connection, self._keyring(connection))

    def anchored(self) -> TreeHead:
        """Read the tree head that the anchor holds. Raises `IntegrityError` without one, or when it does not verify."""
        text = self._anchor.text()
        with self._database.read() as connection:
            checkpoint = anchored_checkpoint(text, self._anchor, self._keyring(connection))
        return TreeHead(checkpoint.size, checkpoint.root, text or "")

    def entries(
        self,
        type: type[Event] | str | None = None,
        subject: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        *,
        newest_first: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> Iterator[Entry]:
        """Read entries in order, those that match every given filter.

        Where a type is given, it is proved that they are these and no others, unless the ledger was opened unchecked.

        Args:
          type: the event, or the name of its type.
          subject: what the event is about.
          actor: pseudonym of the actor.
          since: earliest time, inclusive.
          until: latest time, inclusive.
          limit: at most so many.
          newest_first: walk backwards.
          facts: values of facts, such as {"run_id": "run_3f9c0a12be47"}.
        """
        name = type if type is None or isinstance(type, str) else type.type
        wanted = Filter(name, subject, actor, since, until, limit, newest_first, facts or {})
        with self._snapshot() as (connection, snapshot):
            believed = self._prover is None or name is None
            found = None if believed else snapshot.register().entries(str(name))
            yield from read_entries(connection, wanted, found)

    def leaves(self, *kinds: type[Event]) -> Iterator[dict[str, Any]]:
        """Read the leaves of all entries of these kinds in order, proved as `entries` are; no body is looked at."""
        types = [kind.type for kind in kinds]
        with self._snapshot() as (connection, snapshot):
            if self._prover is None:
                yield from read_leaves(connection, types)
                return
            register = snapshot.register()
            found = sorted((entry for name in types for entry in register.entries(name)), key=lambda e: e.index)
            yield from read_all_registered(connection, found)

    def entry(self, index: int) -> Entry:
        """Read one entry, proved as `entries` are. Raises `ArtefactMissing`."""
        with self._snapshot() as (connection, snapshot):
            return read_entry(connection, self._proved_leaf(connection, snapshot, index))

    def leaf(self, index: int) -> bytes:
        """Read the stored bytes of a leaf, as they are hashed; proved as `entries` are. Raises `ArtefactMissing`."""
        with self._snapshot() as (connection, snapshot):
            return self._proved_leaf(connection, snapshot, index)

    def body(self, index: int, private_key: bytes) -> dict[str, str] | None:
        """Open the body (name, reason) of an entry; None where it has none or it is gone.

        Raises:
          KeyUnavailable: the 32-byte X25519 private key does not open it.
          IntegrityError: it is not what the leaf committed to.
        """
        with self._database.read() as connection:
            leaf = parse_leaf(self._leaf(connection, index))
            sealed = read_body(connection, leaf)
        if sealed is None:
            return None
        return unseal(sealed, leaf["body"]["commitment"], private_key, self._config.origin)

    def prove(self, index: int, head: TreeHead | None = None) -> str:
        """Prove (C2SP tlog-proof) that the entry is in the newest signed tree head, or in `head`; see `proof.verify`.

        Raises:
          ArtefactMissing: there is no such entry.
          Stale: it is not signed yet.
        """
        with self._database.read() as connection:
            self._leaf(connection, index)
            head = head or last_tree_head(connection, self._keyring(connection))
            if head is None or index >= head.size:
                raise Stale(f"entry {index} is newer than the last signed tree head", hint="sign it first")
            path = merkle.inclusion_path(index, head.size, StoredTree(connection, head.size).node)
        return proof.encode(index, path, head.note)

    def prove_consistency(self, old_size: int, head: TreeHead) -> str:
        """Prove that the tree of `head` continues that of its first `old_size` entries; see `proof.verify_consistency`.

        Raises `UsageError` unless 0 < `old_size` <= `head.size`.
        """
        if not 0 < old_size <= head.size:
            raise UsageError(f"a tree of {head.size} entries has no part of {old_size}")
        with self._database.read() as connection:
            node = StoredTree(connection, head.size).node
            old_root = merkle.fold(merkle.frontier_at(old_size, node))
            path = merkle.consistency_path(old_size, head.size, node)
        return proof.encode_consistency(old_size, old_root, path)

    def verify(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        trusted: tuple[str, ...] = (),
        body_key: bytes | None = None,
        deep: bool = True,
        witnesses: Path | None = None,
        kept: Sequence[str] = (),
    ) -> Verification:
        """Check everything: every entry, tile, tree head, row, definition and body against the signed log.

        Args:
          progress: called now and then with (entries checked, entries).
          trusted: pinned verifier keys, of any time of the log; those in the signing directory where none are given.
          body_key: 32-byte X25519 private key; with it bodies are opened and checked too.
          deep: check the database's indexes too, which cannot change a row but can hide one from a query.
          witnesses: file of the witnesses' keys that the caller trusts; the configuration's where it is None.
          kept: signed tree heads that the caller kept elsewhere; the log must continue them.

        Raises:
          IntegrityError: the database is too damaged to be read to the end.
        """
        keys = tuple(VerifierKey.parse(key) for key in trusted) or self._local
        with self._database.read() as connection:
            beside = self._database.file or self._config.signing_dir
            return verify_ledger(
                connection,
                beside,
                keys,
                self._anchor,
                progress,
                body_key=body_key,
                deep=deep,
                witnesses=self._witnesses(witnesses),
                kept=kept,
            )

    def export(self, directory: Path) -> tuple[TreeHead, int]:
        """Write the log up to its newest tree head for auditors; returns that head and the number of files.

        Raises `UsageError` when the directory exists, `Stale` when nothing was signed yet; see `snapshot`.
        """
        with self._database.read() as connection:
            ring = self._keyring(connection)
            head = last_tree_head(connection, ring)
            if head is None:
                raise Stale("nothing was signed yet", hint="appliance ledger sign")
            cosignatures = witness.lines(connection, head.size)
            return head, write_snapshot(connection, head, cosignatures, ring.at(head.size).texts, directory)

    def _witnesses(self, path: Path | None) -> tuple[VerifierKey, ...]:
        path = path or self._config.witnesses
        return witness.load_witnesses(path) if path is not None else ()

    def _proved_leaf(self, connection: Connection, snapshot: Snapshot, index: int) -> bytes:
        leaf = self._leaf(connection, index)
        if self._prover is not None:
            found = snapshot.register().find(str(parse_leaf(leaf)["type"]), index)
            if found is None:
                raise IntegrityError(f"entry {index} of the ledger was altered")
            require_registered(found, leaf)
        return leaf

    def _leaf(self, connection: Connection, index: int) -> bytes:
        query = select(schema.entry.c.leaf).where(schema.entry.c.idx == index)
        leaf = connection.execute(query).scalar_one_or_none()
        if leaf is None:
            raise ArtefactMissing(f"the ledger has no entry {index}")
        if not isinstance(leaf, bytes):
            raise IntegrityError(f"entry {index} of the ledger is damaged")
        return leaf
