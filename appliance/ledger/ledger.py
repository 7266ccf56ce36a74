"""The ledger as the flows use it: create, open, write rows with their events, sign, prove, verify."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, false, select

from appliance.errors import ArtefactMissing, Busy, ConfigInvalid, IntegrityError, Stale, UsageError
from appliance.ledger import merkle, proof, schema, witness
from appliance.ledger.anchor import Anchor
from appliance.ledger.bodies import unseal
from appliance.ledger.database import Database, roles
from appliance.ledger.dialect import Finding, Roles
from appliance.ledger.durable import sync_directory
from appliance.ledger.entries import Entry, Filter, read_body, read_entries, read_entry
from appliance.ledger.heads import TreeHead, check_against_anchor, first_head_over, last_tree_head, sign_head
from appliance.ledger.keyring import REKEYED, Keyring, KeySet, build, described, first_keys, leaves_about_keys, rekeying
from appliance.ledger.leaf import Actor, new_event_id, parse_leaf
from appliance.ledger.log import Appender, Clock, Context, StoredTree, now, read_head
from appliance.ledger.note import Signer, VerifierKey, valid_name
from appliance.ledger.signing import create_keys, create_next_keys, load_signers, load_verifiers, promote
from appliance.ledger.snapshot import write_snapshot
from appliance.ledger.transaction import Reading, Transaction
from appliance.ledger.verify import Verification, stated, verify_ledger
from appliance.ledger.witness import Cosigned

_SYSTEM = Actor("system", "")
_FOREIGN_KEYS = "the signing keys are not those of this ledger"


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Where a ledger lives.

    Attributes:
      url: SQLAlchemy URL of the database, `sqlite:////absolute/path` or `postgresql+psycopg://ROLE@/DATABASE?host=...`.
      origin: name of the log in its tree heads, such as "hospital.example/appliance"; no space, no plus sign.
      signing_dir: directory of the log's signing keys.
      anchor: file of the last signed tree head; best on another volume than the database.
      body_public_key: 32-byte X25519 public key that names and reasons are sealed to.
      owner_url: the same database as the role that owns the tables, to create and upgrade; empty where `url` is it.
      eraser_url: the same database as the role that may delete bodies; empty where `url` may.
      witnesses: file of the verifier keys of trusted witnesses, one a line; it need not exist.
    """

    url: str
    origin: str
    signing_dir: Path
    anchor: Path
    body_public_key: bytes
    owner_url: str = ""
    eraser_url: str = ""
    witnesses: Path | None = None


class Ledger:
    """An open ledger. Made by `create` or `open`; a context manager that signs what is unsigned when it is left."""

    def __init__(self, config: LedgerConfig, database: Database, clock: Clock, *, writable: bool) -> None:
        self._config = config
        self._database = database
        self._clock = clock
        self._writable = writable
        self._local = load_verifiers(config.signing_dir)
        self._built: tuple[tuple[bytes, ...], Keyring] | None = None
        self._anchor = Anchor(config.anchor)

    @classmethod
    def create(cls, config: LedgerConfig, *, clock: Clock = now) -> Ledger:
        """Make a new ledger with its first entry, signed and anchored; continues a creation that was interrupted.

        Raises:
          UsageError: there is a finished ledger already, or the database holds another one.
          ConfigInvalid: the origin or the URL cannot be used.
        """
        if not valid_name(config.origin) or len(config.body_public_key) != 32:
            raise ConfigInvalid("the origin or the body key of the ledger cannot be used")
        if config.anchor.exists():
            raise UsageError("there is a ledger already", where=str(config.anchor))
        create_keys(config.signing_dir, config.origin)
        database = Database(config.url, writable=True, create=True)
        ledger = cls(config, database, clock, writable=True)
        try:
            with ledger._owner() as owner, owner.define() as connection:
                ledger._begin(connection)
            if database.file is not None:
                sync_directory(database.file.parent)
            ledger.sign()
        except BaseException:
            database.close()
            raise
        return ledger

    @classmethod
    def open(cls, config: LedgerConfig, *, writable: bool = True, checked: bool = True, clock: Clock = now) -> Ledger:
        """Open a ledger.

        It is checked first: its tables and guards must be those that it states, and it must continue what was
        anchored. Only a reader that wants to say what is wrong with it, as `verify` does, leaves `checked` out.
        A ledger of an older revision is upgraded when it is opened for writing, and an entry says so. Where another
        role owns the tables, that needs its URL in the configuration.

        Raises:
          ArtefactMissing: there is no ledger.
          IntegrityError: it is damaged, was altered or is behind its anchor.
        """
        ledger = cls(config, Database(config.url, writable=writable), clock, writable=writable)
        if writable or checked:
            try:
                with ledger._database.read() as connection:
                    ledger._check(connection)
                    old = ledger._revision(connection) != schema.REVISION
                if writable and old:
                    ledger._upgrade()
            except BaseException:
                ledger._database.close()
                raise
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Sign and anchor what is not signed yet, and close the database."""
        try:
            if self._writable:
                self.sign()
        finally:
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
        """The keys that sign tree heads of this size."""
        with self._database.read() as connection:
            return self._keyring(connection).at(size)

    @contextmanager
    def transaction(
        self, actor: Actor, reason: str | None = None, policy_sha256: str | None = None
    ) -> Iterator[Transaction]:
        """A writing transaction: all of its rows and entries become durable when the block is left, or none.

        Raises:
          ApplianceError: rows were changed without an event.
          Busy: another process held the database for too long.
          WillNotFit: the disk is full.
        """
        self._need_writable()
        context = self._context(actor, reason, policy_sha256)
        with self._database.write() as connection:
            transaction = Transaction(connection, context)
            yield transaction
            transaction.finish()

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """The catalog in one snapshot."""
        with self._database.read() as connection:
            yield Reading(connection)

    def findings(self) -> list[Finding]:
        """How the database is set up, for people."""
        return self._database.findings()

    def sign(self) -> TreeHead:
        """Sign the log's end, store the tree head and fsync the anchor. Does nothing twice.

        Raises `IntegrityError` when the log is not a continuation of what was signed and anchored.
        """
        self._need_writable()
        with self._database.write() as connection:
            ring = self._keyring(connection)
            if self._anchor.path.exists() or read_head(connection).size > 1:
                check_against_anchor(connection, self._anchor, ring)
            head = sign_head(connection, ring, lambda: self._signers(ring))
        self._anchor.advance(head.note, head.size, ring)
        return head

    def rotate(self, actor: Actor, reason: str | None = None) -> tuple[int, TreeHead]:
        """Change the signing keys: an entry signed by the old and the new keys, between a head of each, in one commit.

        The old keys sign the log up to that entry, fresh ones from it on; the old private keys are dropped. A crash
        leaves either the old keys in force or the new, and whoever signs next continues.

        Returns:
          The index of the entry, and the first tree head that the new keys signed.

        Raises:
          IntegrityError: the log is not a continuation of what was signed and anchored.
          Busy: the clock stepped back at that moment, or another process held the database for too long.
        """
        self._need_writable()
        with self._database.write() as connection:
            ring = self._keyring(connection)
            check_against_anchor(connection, self._anchor, ring)
            old = self._signers(ring)
            context = self._context(actor, reason)
            Appender(connection, context).flush_regression()
            last = sign_head(connection, ring, lambda: old)
            new = create_next_keys(self._config.signing_dir, self._config.origin, self._clock)
            appender = Appender(connection, context)
            facts = rekeying(ring, last.size, last.root.hex(), old, new)
            index = appender.append(REKEYED, facts, subject=None, event_id=new_event_id())
            if index != last.size:
                raise Busy("the clock stepped back while the keys were changed; nothing was written", hint="try again")
            appender.flush()
            ring = self._keyring(connection)
            head = sign_head(connection, ring, lambda: new)
        promote(self._config.signing_dir, ring.current.keys)
        self._local = ring.current.keys
        self._anchor.advance(head.note, head.size, ring)
        return index, head

    def head(self, covering: int | None = None) -> TreeHead | None:
        """The newest signed tree head; the first one that covers entry `covering` where an index is given."""
        with self._database.read() as connection:
            if covering is not None:
                return first_head_over(connection, covering, self._keyring(connection))
            return last_tree_head(connection, self._keyring(connection))

    def entries(
        self,
        type: str | None = None,
        subject: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        *,
        newest_first: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> Iterator[Entry]:
        """Entries in order, those that match every given filter.

        Args:
          type: event type.
          subject: what the event is about.
          actor: pseudonym of the actor.
          since: earliest time, inclusive.
          until: latest time, inclusive.
          limit: at most so many.
          newest_first: walk backwards.
          facts: values of facts, such as {"run_id": "run_3f9c0a12be47"}.
        """
        wanted = Filter(type, subject, actor, since, until, limit, newest_first, facts or {})
        with self._database.read() as connection:
            yield from read_entries(connection, wanted)

    def entry(self, index: int) -> Entry:
        """One entry. Raises `ArtefactMissing`."""
        with self._database.read() as connection:
            return read_entry(connection, self._leaf(connection, index))

    def leaf(self, index: int) -> bytes:
        """The stored bytes of a leaf, as they are hashed. Raises `ArtefactMissing`."""
        with self._database.read() as connection:
            return self._leaf(connection, index)

    def body(self, index: int, private_key: bytes) -> dict[str, str] | None:
        """The opened body (name, reason) of an entry; None where it has none or it is gone.

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
        """A C2SP tlog-proof that the entry is in the newest signed tree head, or in `head`; see `proof.verify`.

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
        """A proof that the tree of `head` continues that of its first `old_size` entries; `proof.verify_consistency`.

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

    def witness_request(self, old_size: int | None = None) -> str:
        """Sign the log's end and return the body of a C2SP `add-checkpoint` request for it; see `witness.request`."""
        head = self.sign()
        with self._database.read() as connection:
            return witness.request(connection, head, old_size)

    def add_cosignatures(self, text: str) -> list[Cosigned]:
        """Store the cosignature lines of a witness's answer; see `witness.add`."""
        self._need_writable()
        with self._database.write() as connection:
            return witness.add(connection, text, self._witnesses(None))

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

    def erase(self, index: int, actor: Actor, reason: str | None = None) -> int:
        """Erase the body of an entry, shared by the entries of its transaction: the entry that says so is signed first.

        Continues an erasure that was interrupted. Copies in write-ahead logs and backups are not reached.

        Returns:
          Index of the entry that says so.

        Raises:
          ArtefactMissing: there is no such entry, or it has no body.
          UsageError: the body is gone already.
        """
        entry = self.entry(index)
        if entry.leaf["body"] is None:
            raise ArtefactMissing(f"entry {index} has no body")
        first = int(entry.leaf["body"]["index"])
        said = next(self.entries("body.erased", str(first), limit=1), None)
        with self._database.read() as connection:
            there = read_body(connection, entry.leaf, checked=False) is not None
        if not there:
            raise UsageError(f"the body of entry {index} is {entry.body}")
        eraser = Database(self._config.eraser_url or self._config.url, writable=True)
        try:
            with eraser.erasing() as connection:  # whether it may, before anything says that it did
                connection.execute(schema.body.delete().where(false()))
            where = self._say_erased(first, actor, reason) if said is None else said.index
            self.sign()
            with eraser.erasing() as connection:
                connection.execute(schema.body.delete().where(schema.body.c.idx == first))
        finally:
            eraser.close()
        return where

    def _begin(self, connection: Connection) -> None:
        """Migrate and write the first entry; in an interrupted creation either may have been done."""
        from appliance.ledger.migration import upgrade

        upgrade(connection, self._roles())
        if read_head(connection).size:
            if first_keys(leaves_about_keys(connection)[0]) != self._local:
                raise UsageError("the database holds another ledger", hint="name an empty one")
            return
        keys = described(self._local)
        facts = {"origin": self._config.origin, "keys": keys, "schema": schema.schema_digests(connection)}
        appender = Appender(connection, self._context(_SYSTEM))
        appender.append("ledger.created", facts, subject=None, event_id=new_event_id())
        appender.flush()

    def _check(self, connection: Connection) -> None:
        problems = schema.schema_problems(connection, self._stated(connection))
        if problems:
            raise IntegrityError(problems[0], where=self._database.where)
        ring = build(leaves_about_keys(connection), self._local)
        check_against_anchor(connection, self._anchor, ring)
        self._keyring(connection)
        if self._writable and not promote(self._config.signing_dir, ring.current.keys):
            raise IntegrityError(_FOREIGN_KEYS, where=str(self._config.signing_dir))

    def _keyring(self, connection: Connection) -> Keyring:
        """The keys of the log as this transaction sees it; ours must be among them."""
        leaves = leaves_about_keys(connection)
        if self._built is None or self._built[0] != leaves:
            self._built = leaves, build(leaves, self._local)
        if not self._built[1].has(self._local):
            raise IntegrityError(_FOREIGN_KEYS, where=str(self._config.signing_dir))
        return self._built[1]

    def _stated(self, connection: Connection) -> dict[str, str]:
        try:
            return stated(connection)
        except (StopIteration, KeyError, TypeError, ValueError):
            raise IntegrityError("the ledger does not say how it was made", where=self._database.where) from None

    def _upgrade(self) -> None:
        """Bring an older database to this revision, in one transaction with the entry that says so."""
        from appliance.ledger.migration import upgrade

        with self._owner() as owner, owner.define() as connection:
            if self._revision(connection) == schema.REVISION:  # another process was faster
                return
            upgrade(connection, self._roles())
            facts = {"revision": schema.REVISION, "schema": schema.schema_digests(connection)}
            appender = Appender(connection, self._context(_SYSTEM))
            appender.append("ledger.upgraded", facts, subject=None, event_id=new_event_id())
            appender.flush()
        self.sign()

    @contextmanager
    def _owner(self) -> Iterator[Database]:
        """The database as the role that owns its tables."""
        if not self._config.owner_url:
            yield self._database
            return
        database = Database(self._config.owner_url, writable=True)
        try:
            yield database
        finally:
            database.close()

    def _roles(self) -> Roles:
        return roles(self._config.url, self._config.eraser_url) if self._config.owner_url else Roles()

    def _revision(self, connection: Connection) -> str:
        return schema.revision_of(self._stated(connection))

    def _say_erased(self, index: int, actor: Actor, reason: str | None) -> int:
        with self.transaction(actor, reason) as tx:
            return tx.append("body.erased", {"index": index}, subject=str(index))

    def _witnesses(self, path: Path | None) -> tuple[VerifierKey, ...]:
        path = path or self._config.witnesses
        return witness.load_witnesses(path) if path is not None else ()

    def _signers(self, ring: Keyring) -> tuple[Signer, ...]:
        """The newest private keys; finishes a change of keys that was interrupted after its commit."""
        if not promote(self._config.signing_dir, ring.current.keys):
            raise IntegrityError(_FOREIGN_KEYS, where=str(self._config.signing_dir))
        return load_signers(self._config.signing_dir, self._clock)

    def _context(self, actor: Actor, reason: str | None = None, policy_sha256: str | None = None) -> Context:
        key = self._config.body_public_key
        return Context(self._config.origin, self._clock, actor, reason, policy_sha256, key)

    def _leaf(self, connection: Connection, index: int) -> bytes:
        query = select(schema.entry.c.leaf).where(schema.entry.c.idx == index)
        leaf = connection.execute(query).scalar_one_or_none()
        if leaf is None:
            raise ArtefactMissing(f"the ledger has no entry {index}")
        if not isinstance(leaf, bytes):
            raise IntegrityError(f"entry {index} of the ledger is damaged")
        return leaf

    def _need_writable(self) -> None:
        if not self._writable:
            raise UsageError("the ledger is open for reading only")
