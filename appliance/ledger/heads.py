"""Signed tree heads: signing the log's end after re-reading it, and the checks that go before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from appliance.errors import IntegrityError
from appliance.ledger import merkle, schema
from appliance.ledger.anchor import Anchor
from appliance.ledger.database import stream
from appliance.ledger.keyring import Keyring
from appliance.ledger.log import StoredTree, lock_head, read_head
from appliance.ledger.note import Checkpoint, Signer, sign_checkpoint


@dataclass(frozen=True, slots=True)
class TreeHead:
    """A signed tree head: number of entries, 32-byte root, the signed note as text."""

    size: int
    root: bytes
    note: str


def last_tree_head(connection: Connection, ring: Keyring) -> TreeHead | None:
    """Read the newest signed tree head, its signatures checked. Raises `IntegrityError` when they do not verify."""
    columns = schema.tree_head.c
    row = connection.execute(select(columns.size, columns.note).order_by(columns.n.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    checkpoint = ring.open(row.note)
    if checkpoint.size != row.size:
        raise IntegrityError("a tree head of the ledger is filed under another size")
    return TreeHead(checkpoint.size, checkpoint.root, row.note)


def first_head_over(connection: Connection, index: int, ring: Keyring) -> TreeHead | None:
    """Find the oldest signed tree head that covers entry `index`: what was handed out right after it was written."""
    columns = schema.tree_head.c
    query = select(columns.note).where(columns.size > index).order_by(columns.size).limit(1)
    note = connection.execute(query).scalar_one_or_none()
    if note is None:
        return None
    checkpoint = ring.open(note)
    return TreeHead(checkpoint.size, checkpoint.root, note)


def anchored_checkpoint(note: str | None, anchor: Anchor, ring: Keyring) -> Checkpoint:
    """Open the note that was read from the anchor. Raises `IntegrityError` without one, or when it does not verify."""
    if note is None:
        raise IntegrityError(
            "the ledger's anchor is missing, so a rolled-back database could not be told",
            where=str(anchor.path),
            hint="bring the anchor file back; nothing is written without it",
        )
    return anchor.open(note, ring)


def check_against_anchor(connection: Connection, anchor: Anchor, ring: Keyring, note: str | None) -> None:
    """Raise `IntegrityError` unless the log, by its stored nodes, continues what was anchored.

    `note` is the anchor's text, read before the snapshot was taken or while nobody else can write.
    """
    checkpoint = anchored_checkpoint(note, anchor, ring)
    size = read_head(connection).size
    if size < checkpoint.size:
        raise IntegrityError(
            f"the database has {size} entries, its anchor {checkpoint.size}: it was rolled back or cut off",
            where=str(anchor.path),
        )
    tree = StoredTree(connection, size)
    if merkle.fold(merkle.frontier_at(checkpoint.size, tree.node)) != checkpoint.root:
        raise IntegrityError(
            f"the first {checkpoint.size} entries are not those that were anchored", where=str(anchor.path)
        )


def check_continues(connection: Connection, old: Checkpoint, new: Checkpoint, done: str = "anchored") -> None:
    """Prove that the log of `new`, which this snapshot holds, continues that of `old`.

    The nodes that the database stores are no more than a proof here: false ones make it fail.

    Args:
      connection: the snapshot.
      old: what is continued.
      new: the log's end, as it was recomputed.
      done: what was done with `old`, for the message.

    Raises:
      IntegrityError: it does not.
    """
    if old.size > new.size:
        raise IntegrityError(
            f"the database has {new.size} entries, {old.size} were {done}: it was rolled back or cut off"
        )
    path = merkle.consistency_path(old.size, new.size, StoredTree(connection, new.size).node)
    try:
        merkle.check_consistency(old.size, new.size, old.root, new.root, path)
    except IntegrityError:
        raise IntegrityError(f"the first {old.size} entries are not those that were {done}") from None


def sign_head(connection: Connection, ring: Keyring, signers: Callable[[], Sequence[Signer]]) -> TreeHead:
    """Sign the log's end inside a writing transaction and store the tree head; the newest one if nothing was added.

    Everything since the last signed head is read again and hashed again; the result must be the head that was stored
    and a proven continuation of the last signed root.
    """
    head = lock_head(connection)
    last = last_tree_head(connection, ring)
    if last is not None and last.size == head.size:
        return last
    root = _recompute(connection, head.size, last)
    if root != head.root:
        raise IntegrityError("the head of the ledger does not follow from its entries; it was not signed")
    note = sign_checkpoint(Checkpoint(ring.origin, head.size, root), signers())
    ring.open(note)
    count = connection.execute(select(schema.tree_head.c.n).order_by(schema.tree_head.c.n.desc()).limit(1)).scalar()
    values = {"n": 0 if count is None else count + 1, "size": head.size, "note": note}
    connection.execute(schema.tree_head.insert(), values)
    return TreeHead(head.size, root, note)


def _recompute(connection: Connection, size: int, last: TreeHead | None) -> bytes:
    old = last.size if last else 0
    tree = StoredTree(connection, size)
    frontier = merkle.frontier_at(old, tree.node)
    if last is not None and merkle.fold(frontier) != last.root:
        raise IntegrityError(f"the first {old} entries are not those that were signed")
    rows = stream(connection, "SELECT idx, leaf FROM entry WHERE idx >= ? ORDER BY idx", old)
    hashes = []
    for expected, (index, leaf) in enumerate(rows, start=old):
        if index != expected or not isinstance(leaf, bytes):
            raise IntegrityError(f"entry {expected} of the ledger is missing or damaged")
        hashes.append(merkle.leaf_hash(leaf))
    if old + len(hashes) != size:
        raise IntegrityError("the ledger has another number of entries than its head says")
    root = merkle.fold(merkle.extend(frontier, old, hashes))
    if last is not None:
        merkle.check_consistency(old, size, last.root, root, merkle.consistency_path(old, size, tree.node))
    return root
