"""The keys that signed a log, in the order in which they took over.

The first entry names the first set. Each later set is named by an entry `ledger.rekeyed`, which carries a statement
signed by every key of the set before and by every key of its own. The statement names the log, the index of the entry,
the root over all entries before it, and both sets, so that it holds in no other history. Tree heads of at most `index`
entries are signed by the old set, larger ones by the new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from appliance.errors import IntegrityError
from appliance.events.ledger import KeyFacts, LedgerRekeyed
from appliance.ledger import dialect
from appliance.ledger.canonical import LeafInvalid, canonical
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import (
    ALGORITHMS,
    ED25519,
    MLDSA44,
    Checkpoint,
    Signer,
    VerifierKey,
    decode64,
    encode64,
    open_checkpoint,
    unverified_size,
)

_TAG = b"appliance/ledger/rotation/v1\n"  # no tree head begins like a statement: its second line is a number
_LATER = "SELECT idx, leaf FROM entry WHERE type = 'ledger.rekeyed'"
_ALL = f"SELECT leaf FROM (SELECT idx, leaf FROM entry WHERE idx = 0 UNION ALL {_LATER}) AS told ORDER BY idx"  # noqa: S608

Keys = tuple[VerifierKey, ...]


@dataclass(frozen=True, slots=True)
class KeySet:
    """Verifier keys of one time, an Ed25519 and an ML-DSA-44 one, and the smallest tree size that they sign."""

    since: int
    keys: Keys

    @property
    def texts(self) -> tuple[str, ...]:
        """The keys as C2SP verifier keys."""
        return tuple(key.encode() for key in self.keys)


@dataclass(frozen=True, slots=True)
class Keyring:
    """All key sets of a log, oldest first, and the keys that this machine has for it."""

    sets: tuple[KeySet, ...]
    local: Keys

    @staticmethod
    def of(keys: Keys) -> Keyring:
        """Make the keyring of a log that never changed its keys."""
        return Keyring((KeySet(0, keys),), keys)

    @property
    def origin(self) -> str:
        """Name of the log."""
        return self.current.keys[0].name

    @property
    def current(self) -> KeySet:
        """The newest set."""
        return self.sets[-1]

    def at(self, size: int) -> KeySet:
        """Find the set that signs tree heads of this size."""
        return next(found for found in reversed(self.sets) if found.since <= size)

    def has(self, keys: Keys) -> bool:
        """Tell whether exactly these keys are one of the sets."""
        return any(found.keys == keys for found in self.sets)

    def open(self, note: str, *, exact: bool = True) -> Checkpoint:
        """Open a note that the keys of its size signed. Raises `IntegrityError`."""
        return open_checkpoint(note, self.at(unverified_size(note)).keys, exact=exact)

    def open_outside(self, note: str, *, exact: bool = True) -> Checkpoint:
        """Open a note from outside the database, which may have been rolled back behind a change of keys."""
        try:
            return self.open(note, exact=exact)
        except IntegrityError:
            if self.local == self.current.keys:
                raise
            return open_checkpoint(note, self.local, exact=exact)

    def follow(self, leaf: Mapping[str, Any]) -> Keyring:
        """Add the keys of the entry with this leaf. Raises `IntegrityError` unless both sets signed its statement."""
        try:
            index, facts = leaf["index"], leaf["facts"]
            if type(index) is not int or type(facts["root"]) is not str:
                raise TypeError
            new = tuple(VerifierKey.parse(key["vkey"]) for key in facts["keys"])
            signatures = [decode64(text) for text in facts["signatures"]]
            said = statement(self.origin, index, facts["root"], self.current.keys, new)
        except (IntegrityError, LeafInvalid, KeyError, TypeError, ValueError, AttributeError):
            raise IntegrityError("an entry that changes the signing keys is malformed") from None
        signers = (*self.current.keys, *new)
        kinds = [key.algorithm for key in new]
        fitting = kinds == [ED25519, MLDSA44] and all(key.name == self.origin for key in new)
        if not fitting or facts["old"] != list(self.current.texts) or index < self.current.since:
            raise IntegrityError(f"entry {index} does not change the signing keys from those before it")
        if len(signatures) != len(signers) or not all(map(VerifierKey.has_signed, signers, [said] * 4, signatures)):
            raise IntegrityError(
                f"entry {index} changes the signing keys, but the old and the new did not both sign it"
            )
        return Keyring((*self.sets, KeySet(index + 1, new)), self.local)


def statement(origin: str, index: int, root: str, old: Keys, new: Keys) -> bytes:
    """Write what old and new keys sign: tag, canonical JSON. `root` is the hex root over the first `index` entries."""
    both = {name: [key.encode() for key in keys] for name, keys in (("old", old), ("new", new))}
    return _TAG + canonical({"origin": origin, "index": index, "root": root, **both})


def rekey(ring: Keyring, index: int, root: str, old: Sequence[Signer], new: Sequence[Signer]) -> LedgerRekeyed:
    """Make the entry `index` that hands over from the keys of `ring` to those of `new`."""
    taking = tuple(signer.verifier for signer in new)
    said = statement(ring.origin, index, root, ring.current.keys, taking)
    signatures = [encode64(signer.sign_statement(said)) for signer in (*old, *new)]
    return LedgerRekeyed(root=root, old=list(ring.current.texts), keys=describe(taking), signatures=signatures)


def describe(keys: Keys) -> list[KeyFacts]:
    """Describe a key set as entries state it."""
    return [KeyFacts(algorithm=ALGORITHMS[k.algorithm], id=k.key_id.hex(), vkey=k.encode()) for k in keys]


def leaves_about_keys(connection: Connection) -> tuple[bytes, ...]:
    """Read the bytes of the first entry and of those that change the keys. Raises `IntegrityError` without a first."""
    rows = dialect.of(connection).run(connection, [(_ALL, ())])
    if not rows or any(not isinstance(leaf, bytes) for (leaf,) in rows):
        raise IntegrityError("the ledger does not say how it was made")
    return tuple(leaf for (leaf,) in rows)


def first_keys(leaf: bytes) -> Keys:
    """Read the keys that the first entry names. Raises `IntegrityError`."""
    try:
        return tuple(VerifierKey.parse(key["vkey"]) for key in parse_leaf(leaf)["facts"]["keys"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise IntegrityError("the ledger does not say how it was made") from None


def build(leaves: Sequence[bytes], local: Keys) -> Keyring:
    """Build the keyring that these leaves give, each change of keys checked. Raises `IntegrityError`."""
    ring = Keyring((KeySet(0, first_keys(leaves[0])),), local)
    for leaf in leaves[1:]:
        ring = ring.follow(parse_leaf(leaf))
    return ring
