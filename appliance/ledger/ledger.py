"""The ledger as the flows use it: create, open, write rows with their events, sign, prove, verify."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, false

from appliance.errors import ArtefactMissing, Busy, ConfigInvalid, IntegrityError, UsageError, WillNotFit
from appliance.events.home import HomeConfigured
from appliance.events.ledger import BodyErased
from appliance.files import fsync_directory
from appliance.ledger import making, schema, stated, witness
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database
from appliance.ledger.entries import read_body
from appliance.ledger.heads import TreeHead, check_against_anchor, check_continues, sign_head
from appliance.ledger.keyring import Keyring, Keys, rekey
from appliance.ledger.leaf import Actor
from appliance.ledger.log import Appender, Clock, Context, Head, now, read_head
from appliance.ledger.note import Checkpoint, Signer, may_be_new
from appliance.ledger.opened import FOREIGN_KEYS
from appliance.ledger.proving import Prover, Snapshot
from appliance.ledger.reading import LedgerReader
from appliance.ledger.register import Found, Register
from appliance.ledger.signing import create_keys, create_next_keys, load_signers, promote
from appliance.ledger.transaction import Transaction
from appliance.ledger.witness import Cosigned

_SYSTEM = Actor("system", "")


class Ledger(LedgerReader):
    """An open ledger that can be written. Made by `create` or `open`; signs what is unsigned when it is closed."""

    _written: Head | None = None  # the log's end after the last transaction here, until it is signed
    _configured: Found | None = None  # the entry with which the home's configuration was last compared

    @classmethod
    def create(cls, config: LedgerConfig, *, clock: Clock = now) -> Ledger:
        """Make a new ledger with its first entry, signed and anchored; continues a creation that was interrupted.

        Raises:
          UsageError: there is a finished ledger already, or the database holds another one.
          ConfigInvalid: the origin or the URL cannot be used.
        """
        if not may_be_new(config.origin) or len(config.body_public_key) != 32:
            raise ConfigInvalid("the origin or the body key of the ledger cannot be used")
        if config.anchor.exists():
            raise UsageError("there is a ledger already", where=str(config.anchor))
        create_keys(config.signing_dir, config.origin)
        database = Database(config.url, writable=True, create=True)
        ledger = cls(config, database, clock)
        with ledger._closed_on_error():
            with making.owner(config, database) as owner, owner.define() as connection:
                making.begin(connection, config, ledger._local, ledger._context(_SYSTEM))
            if database.file is not None:
                fsync_directory(database.file.parent)
            ledger.sign()
        return ledger

    @classmethod
    def open(cls, config: LedgerConfig, *, checked: bool = True, clock: Clock = now) -> Ledger:
        """Open a ledger for writing. It is always checked first, as a reader's is.

        A ledger of an older revision is upgraded, and an entry says so. Where another role owns the tables, that
        needs its URL in the configuration.

        Raises:
          ArtefactMissing: there is no ledger.
          IntegrityError: it is damaged, was altered or is behind its anchor.
        """
        ledger = cls(config, Database(config.url, writable=True), clock)
        with ledger._closed_on_error():
            with ledger._snapshot() as (connection, snapshot):
                definitions = ledger._check(connection, snapshot.anchored)
                if stated.prove_definitions(connection, snapshot.register()) != definitions:
                    raise IntegrityError("the entry that states the database's definitions was altered")
                configured = ledger._require_configuration(connection, snapshot.register())
                keys = ledger._keyring(connection).current.keys
            ledger._promote(keys)
            if schema.revision_of(definitions) != schema.REVISION:
                ledger._upgrade()
            if config.configuration is not None and not configured:
                ledger._state_configuration(config.configuration)
        return ledger

    def close(self) -> None:
        """Sign and anchor what is not signed yet, keep a copy of the register, and close the database."""
        try:
            with suppress(*([Busy] if self._written is None else [])):  # what others wrote is signed by them
                self.sign()
            with suppress(Busy, WillNotFit):  # without a copy the next process reads more entries
                self._keep_register()
        finally:
            self._database.close()

    @contextmanager
    def transaction(
        self, actor: Actor, reason: str | None = None, policy_sha256: str | None = None
    ) -> Iterator[Transaction]:
        """Open a writing transaction: all of its rows and entries become durable when the block is left, or none.

        The rows that are read in it are proved: each against the newest entry that covers it, and that entry against
        a signed tree head. Nobody else writes meanwhile. What is not signed yet, after a crash or because another
        process is about to, is signed first.

        Raises:
          IntegrityError: a row that was read is not as it was written, or the log is not what was anchored.
          ApplianceError: rows were changed without an event.
          Busy: another process held the database for too long.
          WillNotFit: the disk is full.
        """
        context = self._context(actor, reason, policy_sha256)
        signed: list[tuple[TreeHead, Keyring]] = []
        with self._database.write() as connection:
            snapshot = Snapshot(None, lambda: self._prove_to_decide(connection, signed))
            transaction = Transaction(connection, context, snapshot.rows)
            yield transaction
            written = transaction.finish()
        self._written = written or self._written
        for head, ring in signed:
            self._advance(head, ring)

    def sign(self) -> TreeHead:
        """Sign the log's end, store the tree head and fsync the anchor. Does nothing twice.

        Raises `IntegrityError` when the log is not a continuation of what was signed and anchored, or does not hold
        what was last written here.
        """
        with self._database.write() as connection:
            ring = self._keyring(connection)
            if self._anchor.path.exists() or read_head(connection).size > self._first:
                check_against_anchor(connection, self._anchor, ring, self._anchor.text())
            head = sign_head(connection, ring, lambda: self._signers(ring))
            if self._written is not None:
                written = Checkpoint(ring.origin, self._written.size, self._written.root)
                check_continues(connection, written, Checkpoint(ring.origin, head.size, head.root), "written")
        self._written = None
        self._advance(head, ring)
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
        with self._database.write() as connection:
            ring = self._keyring(connection)
            check_against_anchor(connection, self._anchor, ring, self._anchor.text())
            old = self._signers(ring)
            context = self._context(actor, reason)
            Appender(connection, context).flush_regression()
            last = sign_head(connection, ring, lambda: old)
            new = create_next_keys(self._config.signing_dir, self._config.origin, self._clock)
            appender = Appender(connection, context)
            rekeyed = rekey(ring, last.size, last.root.hex(), old, new)
            index = appender.append(rekeyed)
            if index != last.size:
                raise Busy("the clock stepped back while the keys were changed; nothing was written", hint="try again")
            appender.flush()
            ring = self._keyring(connection)
            head = sign_head(connection, ring, lambda: new)
        promote(self._config.signing_dir, ring.current.keys)
        self._local = ring.current.keys
        self._prover = Prover(self._anchor, self._config.register, self._local[0])
        self._anchor.advance(head.note, head.size, ring)
        return index, head

    def witness_request(self, old_size: int | None = None) -> str:
        """Sign the log's end and return the body of a C2SP `add-checkpoint` request for it; see `witness.request`."""
        head = self.sign()
        with self._database.read() as connection:
            return witness.request(connection, head, old_size)

    def add_cosignatures(self, text: str) -> list[Cosigned]:
        """Store the cosignature lines of a witness's answer; see `witness.add`."""
        with self._database.write() as connection:
            return witness.add(connection, text, self._witnesses(None))

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
        said = next(self.entries(BodyErased, str(first), limit=1), None)
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

    @property
    def _first(self) -> int:
        """How many entries a new ledger begins with; of no more, the anchor may not have been written yet."""
        return 1 if self._config.configuration is None else 2

    def _require_configuration(self, connection: Connection, register: Register) -> bool:
        """Compare the home's configuration with what the ledger says, once for each entry; whether it says anything."""
        wanted, newest = self._config.configuration, register.newest(HomeConfigured.type)
        if wanted is not None and newest is not None and newest != self._configured:
            stated.require_configuration(connection, newest, wanted)
            self._configured = newest
        return wanted is None or newest is not None

    def _state_configuration(self, configuration: HomeConfigured) -> None:
        """Say how the home is configured, in a ledger of a release that did not."""
        with self.transaction(_SYSTEM) as tx:
            tx.append(configuration)
        self.sign()

    def _prove_to_decide(self, connection: Connection, signed: list[tuple[TreeHead, Keyring]]) -> Register:
        """Prove the log in a writing transaction up to its end, and sign what is not signed of it."""
        register, anchored = self._prove(connection, self._anchor.text())
        self._require_configuration(connection, register)
        if anchored.size < register.size:
            ring = self._keyring(connection)
            head = sign_head(connection, ring, lambda: self._signers(ring))
            if (head.size, head.root) != (register.size, register.root):
                raise IntegrityError("the newest tree head is not that of the entries")
            signed.append((head, ring))
        return register

    def _keep_register(self) -> None:
        """Keep a copy of the register where one is due, unless another process has written what it has not signed."""
        if self._prover is None or not self._prover.lags:
            return
        with self._database.write() as connection:  # so that nobody changes the keys meanwhile
            register, anchored = self._prove(connection, self._anchor.text())
            if anchored.size == register.size:
                self._prover.keep(self._signers(self._keyring(connection))[0].sign_statement)

    def _upgrade(self) -> None:
        with making.owner(self._config, self._database) as owner, owner.define() as connection:
            making.upgrade(connection, self._config, self._context(_SYSTEM))
        self.sign()

    def _say_erased(self, index: int, actor: Actor, reason: str | None) -> int:
        with self.transaction(actor, reason) as tx:
            return tx.append(BodyErased(index=index))

    def _advance(self, head: TreeHead, ring: Keyring) -> None:
        """Anchor a head that was signed; another process may have changed the keys since, and anchored by these."""
        try:
            self._anchor.advance(head.note, head.size, ring)
        except IntegrityError:
            with self._database.read() as connection:
                newer = self._keyring(connection)
            if newer == ring:
                raise
            self._anchor.advance(head.note, head.size, newer)

    def _promote(self, keys: Keys) -> None:
        """Finish a change of keys that was interrupted. Others may change them again meanwhile."""
        while not promote(self._config.signing_dir, keys):
            with self._database.read() as connection:
                newest = self._keyring(connection).current.keys
            if newest == keys:
                raise IntegrityError(FOREIGN_KEYS, where=str(self._config.signing_dir))
            keys = newest

    def _signers(self, ring: Keyring) -> tuple[Signer, ...]:
        """Load the newest private keys; finishes a change of keys that was interrupted after its commit."""
        if not promote(self._config.signing_dir, ring.current.keys):
            raise IntegrityError(FOREIGN_KEYS, where=str(self._config.signing_dir))
        return load_signers(self._config.signing_dir, self._clock)

    def _context(self, actor: Actor, reason: str | None = None, policy_sha256: str | None = None) -> Context:
        key = self._config.body_public_key
        return Context(self._config.origin, self._clock, actor, reason, policy_sha256, key)
