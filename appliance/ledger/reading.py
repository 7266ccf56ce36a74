"""Reading a ledger: entries, rows, proofs, tree heads, verification, copies for auditors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, select

from appliance.errors import ArtefactMissing, IntegrityError, Stale, UsageError
from appliance.events.event import Event
from appliance.ledger import merkle, proof, schema, witness
from appliance.ledger.anchor import Anchor
from appliance.ledger.bodies import unseal
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database
from appliance.ledger.dialect import Finding
from appliance.ledger.entries import Entry, Filter, read_body, read_entries, read_entry
from appliance.ledger.heads import TreeHead, check_against_anchor, first_head_over, last_tree_head
from appliance.ledger.keyring import Keyring, KeySet, build, leaves_about_keys
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.log import Clock, StoredTree, now
from appliance.ledger.note import VerifierKey
from appliance.ledger.signing import load_verifiers
from appliance.ledger.snapshot import write_snapshot
from appliance.ledger.transaction import Reading
from appliance.ledger.verify import Verification, read_stated, verify_ledger

FOREIGN_KEYS = "the signing keys are not those of this ledger"


class LedgerReader:
    """An open ledger that cannot be changed: it has nothing that writes, and its connection refuses to.

    Made by `open`; a context manager. `ledger.Ledger` is one that can be changed.
    """

    def __init__(self, config: LedgerConfig, database: Database, clock: Clock) -> None:
        self._config = config
        self._database = database
        self._clock = clock
        self._local = load_verifiers(config.signing_dir)
        self._built: tuple[tuple[bytes, ...], Keyring] | None = None
        self._anchor = Anchor(config.anchor)

    @classmethod
    def open(cls, config: LedgerConfig, *, checked: bool = True, clock: Clock = now) -> LedgerReader:
        """Open a ledger for reading.

        It is checked first: its tables and guards must be those that it states, and it must continue what was
        anchored. Only a reader that wants to say what is wrong with it, as `verify` does, leaves `checked` out.

        Raises:
          ArtefactMissing: there is no ledger.
          IntegrityError: it is damaged, was altered or is behind its anchor.
        """
        ledger = LedgerReader(config, Database(config.url, writable=False), clock)
        if checked:
            with ledger._closed_on_error(), ledger._database.read() as connection:
                ledger._check(connection)
        return ledger

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
    def read(self) -> Iterator[Reading]:
        """Read the catalog in one snapshot."""
        with self._database.read() as connection:
            yield Reading(connection)

    def findings(self) -> list[Finding]:
        """Say how the database is set up, for people."""
        return self._database.findings()

    def head(self, covering: int | None = None) -> TreeHead | None:
        """Read the newest signed tree head; the first one that covers entry `covering` where an index is given."""
        with self._database.read() as connection:
            if covering is not None:
                return first_head_over(connection, covering, self._keyring(connection))
            return last_tree_head(connection, self._keyring(connection))

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
        with self._database.read() as connection:
            yield from read_entries(connection, wanted)

    def leaves(self, *kinds: type[Event]) -> Iterator[dict[str, Any]]:
        """Read the leaves of all entries of these kinds in order. Quicker than `entries`: no body is looked at."""
        column = schema.entry.c
        query = select(column.leaf).where(column.type.in_([kind.type for kind in kinds])).order_by(column.idx)
        with self._database.read() as connection:
            for (leaf,) in connection.execute(query):
                yield parse_leaf(leaf)

    def entry(self, index: int) -> Entry:
        """Read one entry. Raises `ArtefactMissing`."""
        with self._database.read() as connection:
            return read_entry(connection, self._leaf(connection, index))

    def leaf(self, index: int) -> bytes:
        """Read the stored bytes of a leaf, as they are hashed. Raises `ArtefactMissing`."""
        with self._database.read() as connection:
            return self._leaf(connection, index)

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

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._database.close()
            raise

    def _check(self, connection: Connection) -> Keyring:
        """Check that the ledger is what it states and continues its anchor; its keys."""
        problems = schema.schema_problems(connection, self._read_stated(connection))
        if problems:
            raise IntegrityError(problems[0], where=self._database.where)
        ring = build(leaves_about_keys(connection), self._local)
        check_against_anchor(connection, self._anchor, ring)
        return self._keyring(connection)

    def _keyring(self, connection: Connection) -> Keyring:
        """Read the keys of the log as this transaction sees it; ours must be among them."""
        leaves = leaves_about_keys(connection)
        if self._built is None or self._built[0] != leaves:
            self._built = leaves, build(leaves, self._local)
        if not self._built[1].has(self._local):
            raise IntegrityError(FOREIGN_KEYS, where=str(self._config.signing_dir))
        return self._built[1]

    def _read_stated(self, connection: Connection) -> dict[str, str]:
        try:
            return read_stated(connection)
        except (StopIteration, KeyError, TypeError, ValueError):
            raise IntegrityError("the ledger does not say how it was made", where=self._database.where) from None

    def _revision(self, connection: Connection) -> str:
        return schema.revision_of(self._read_stated(connection))

    def _witnesses(self, path: Path | None) -> tuple[VerifierKey, ...]:
        path = path or self._config.witnesses
        return witness.load_witnesses(path) if path is not None else ()

    def _leaf(self, connection: Connection, index: int) -> bytes:
        query = select(schema.entry.c.leaf).where(schema.entry.c.idx == index)
        leaf = connection.execute(query).scalar_one_or_none()
        if leaf is None:
            raise ArtefactMissing(f"the ledger has no entry {index}")
        if not isinstance(leaf, bytes):
            raise IntegrityError(f"entry {index} of the ledger is damaged")
        return leaf
