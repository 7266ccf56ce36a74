"""The ledger as the flows use it: create, open, write rows with their events, sign, prove, verify."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, false

from appliance.errors import ArtefactMissing, Busy, ConfigInvalid, IntegrityError, UsageError
from appliance.events.ledger import BodyErased, LedgerCreated, LedgerUpgraded
from appliance.files import fsync_directory
from appliance.ledger import schema, witness
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database, roles
from appliance.ledger.dialect import Roles
from appliance.ledger.entries import read_body
from appliance.ledger.heads import TreeHead, check_against_anchor, sign_head
from appliance.ledger.keyring import Keyring, describe, first_keys, leaves_about_keys, rekey
from appliance.ledger.leaf import Actor
from appliance.ledger.log import Appender, Clock, Context, now, read_head
from appliance.ledger.note import Signer, valid_name
from appliance.ledger.reading import FOREIGN_KEYS, LedgerReader
from appliance.ledger.signing import create_keys, create_next_keys, load_signers, promote
from appliance.ledger.transaction import Transaction
from appliance.ledger.witness import Cosigned

_SYSTEM = Actor("system", "")


class Ledger(LedgerReader):
    """An open ledger that can be written. Made by `create` or `open`; signs what is unsigned when it is closed."""

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
        ledger = cls(config, database, clock)
        with ledger._closed_on_error():
            with ledger._owner() as owner, owner.define() as connection:
                ledger._begin(connection)
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
            with ledger._database.read() as connection:
                ring = ledger._check(connection)
                old = ledger._revision(connection) != schema.REVISION
            if not promote(config.signing_dir, ring.current.keys):
                raise IntegrityError(FOREIGN_KEYS, where=str(config.signing_dir))
            if old:
                ledger._upgrade()
        return ledger

    def close(self) -> None:
        """Sign and anchor what is not signed yet, and close the database."""
        try:
            self.sign()
        finally:
            self._database.close()

    @contextmanager
    def transaction(
        self, actor: Actor, reason: str | None = None, policy_sha256: str | None = None
    ) -> Iterator[Transaction]:
        """Open a writing transaction: all of its rows and entries become durable when the block is left, or none.

        Raises:
          ApplianceError: rows were changed without an event.
          Busy: another process held the database for too long.
          WillNotFit: the disk is full.
        """
        context = self._context(actor, reason, policy_sha256)
        with self._database.write() as connection:
            transaction = Transaction(connection, context)
            yield transaction
            transaction.finish()

    def sign(self) -> TreeHead:
        """Sign the log's end, store the tree head and fsync the anchor. Does nothing twice.

        Raises `IntegrityError` when the log is not a continuation of what was signed and anchored.
        """
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
        with self._database.write() as connection:
            ring = self._keyring(connection)
            check_against_anchor(connection, self._anchor, ring)
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

    def _begin(self, connection: Connection) -> None:
        """Migrate and write the first entry; in an interrupted creation either may have been done."""
        from appliance.ledger.migration import upgrade

        upgrade(connection, self._roles())
        if read_head(connection).size:
            if first_keys(leaves_about_keys(connection)[0]) != self._local:
                raise UsageError("the database holds another ledger", hint="name an empty one")
            return
        keys, definitions = describe(self._local), schema.schema_digests(connection)
        appender = Appender(connection, self._context(_SYSTEM))
        appender.append(LedgerCreated(origin=self._config.origin, keys=keys, definitions=definitions))
        appender.flush()

    def _upgrade(self) -> None:
        """Bring an older database to this revision, in one transaction with the entry that says so."""
        from appliance.ledger.migration import upgrade

        with self._owner() as owner, owner.define() as connection:
            if self._revision(connection) == schema.REVISION:  # another process was faster
                return
            upgrade(connection, self._roles())
            definitions = schema.schema_digests(connection)
            appender = Appender(connection, self._context(_SYSTEM))
            appender.append(LedgerUpgraded(revision=schema.REVISION, definitions=definitions))
            appender.flush()
        self.sign()

    @contextmanager
    def _owner(self) -> Iterator[Database]:
        """Open the database as the role that owns its tables."""
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

    def _say_erased(self, index: int, actor: Actor, reason: str | None) -> int:
        with self.transaction(actor, reason) as tx:
            return tx.append(BodyErased(index=index))

    def _signers(self, ring: Keyring) -> tuple[Signer, ...]:
        """Load the newest private keys; finishes a change of keys that was interrupted after its commit."""
        if not promote(self._config.signing_dir, ring.current.keys):
            raise IntegrityError(FOREIGN_KEYS, where=str(self._config.signing_dir))
        return load_signers(self._config.signing_dir, self._clock)

    def _context(self, actor: Actor, reason: str | None = None, policy_sha256: str | None = None) -> Context:
        key = self._config.body_public_key
        return Context(self._config.origin, self._clock, actor, reason, policy_sha256, key)
