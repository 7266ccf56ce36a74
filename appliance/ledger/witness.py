"""Witnesses: somebody elsewhere who cosigns tree heads and never cosigns two histories of one log.

The exchange is that of c2sp.org/tlog-witness, carried on removable media: the body of an `add-checkpoint` request goes
out as a file, the lines of its answer come back. Cosignatures are those of c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, select

from appliance.errors import ArtefactMissing, IntegrityError, UsageError
from appliance.ledger import merkle, schema
from appliance.ledger.database import stream
from appliance.ledger.heads import TreeHead
from appliance.ledger.log import StoredTree
from appliance.ledger.note import COSIGNATURE, MLDSA44, VerifierKey, encode64, parse_signature
from appliance.ledger.problems import Problems


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A tree head of `size` entries that the witness of this name cosigned at `time` (POSIX seconds)."""

    size: int
    witness: str
    time: int


def load_witnesses(path: Path) -> tuple[VerifierKey, ...]:
    """Load the trusted witnesses' keys, one a line; blank lines and those with # are skipped; none without a file.

    Raises `IntegrityError` for a line that is no verifier key of a witness.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise IntegrityError("the witness keys are damaged", where=str(path)) from None
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    keys = tuple(VerifierKey.parse(line) for line in wanted)
    if any(key.algorithm not in (COSIGNATURE, MLDSA44) for key in keys):
        raise IntegrityError("a key there is not one that cosigns", where=str(path))
    return keys


def request(connection: Connection, head: TreeHead, old: int | None) -> str:
    """Write an `add-checkpoint` request for `head`: the size the witness knows, a consistency proof, the note.

    `old` is what the witness said it knows; where it is None, the newest size that anybody cosigned.
    """
    if old is None:
        old = connection.execute(select(schema.cosig.c.size).order_by(schema.cosig.c.size.desc()).limit(1)).scalar()
    old = old or 0
    if not 0 <= old <= head.size:
        raise UsageError(f"the newest tree head has {head.size} entries, fewer than {old}")
    path = merkle.consistency_path(old, head.size, StoredTree(connection, head.size).node) if old else []
    return "\n".join([f"old {old}", *(encode64(digest) for digest in path), "", head.note])


def add(connection: Connection, text: str, witnesses: Sequence[VerifierKey]) -> list[Cosigned]:
    """Store the cosignature lines of an answer with the tree heads that they are for.

    Raises:
      ArtefactMissing: no witness is trusted.
      IntegrityError: a line is malformed, of a witness that is not trusted, or for no tree head of ours.
    """
    if not witnesses:
        raise ArtefactMissing("no witness is trusted", hint="put its verifier key into HOME/keys/witnesses.txt")
    added = []
    for line in text.splitlines():
        name, raw = parse_signature(line)
        witness = next((key for key in witnesses if (key.name, key.key_id) == (name, raw[:4])), None)
        if witness is None:
            raise IntegrityError(f"{name} is not a trusted witness")
        found = _find(connection, witness, raw[4:])
        cosig = schema.cosig.c
        known = select(cosig.size).where(cosig.size == found.size, cosig.witness == _id(witness))
        if connection.execute(known).first() is None:
            values = {"size": found.size, "witness": _id(witness), "line": line}
            connection.execute(schema.cosig.insert(), values)
        added.append(found)
    return added


def check(
    connection: Connection, witnesses: Sequence[VerifierKey], good_size: int, problems: Problems
) -> tuple[Cosigned, ...]:
    """Find the newest cosignature of each trusted witness on a tree head that holds; a false one is a problem."""
    if not schema.present(connection, schema.cosig):
        return ()
    newest: dict[str, Cosigned] = {}
    query = "SELECT c.size, c.witness, c.line, t.note FROM cosig c LEFT JOIN tree_head t ON t.size = c.size ORDER BY 1"
    for size, witness, line, note in stream(connection, query):
        if type(note) is not str:
            problems.add(f"a cosignature is of a tree head of {size} entries, which is not here")
            continue
        key = next((key for key in witnesses if _id(key) == witness), None)
        if key is None:  # nobody here trusts it, so it says nothing
            continue
        time = _verify(key, line, note)
        if time is None:
            problems.add(f"the cosignature of {key.name} on {size} entries does not verify")
        elif size <= good_size:
            newest[key.name] = Cosigned(size, key.name, time)
    return tuple(newest.values())


def lines(connection: Connection, size: int) -> list[str]:
    """List the cosignature lines of the tree head of this size."""
    if not schema.present(connection, schema.cosig):
        return []
    cosig = schema.cosig.c
    query = select(cosig.line).where(cosig.size == size).order_by(cosig.witness)
    return list(connection.execute(query).scalars())


def _id(key: VerifierKey) -> str:
    return f"{key.name}+{key.key_id.hex()}"


def _verify(key: VerifierKey, line: object, note: str) -> int | None:
    """Verify a cosignature: its time if it holds, else None."""
    try:
        name, raw = parse_signature(str(line))
    except IntegrityError:
        return None
    text = note.rpartition("\n\n")[0] + "\n"
    holds = (name, raw[:4]) == (key.name, key.key_id) and key.accepts(text, raw[4:])
    return int.from_bytes(raw[4:12], "big") if holds else None


def _find(connection: Connection, witness: VerifierKey, signature: bytes) -> Cosigned:
    """Find the tree head that a signature is for; an answer does not say, and it is most likely the newest."""
    columns = schema.tree_head.c
    for size, note in connection.execute(select(columns.size, columns.note).order_by(columns.n.desc())):
        if witness.accepts(note.rpartition("\n\n")[0] + "\n", signature):
            return Cosigned(size, witness.name, int.from_bytes(signature[:8], "big"))
    raise IntegrityError(f"the cosignature of {witness.name} is for no tree head of this ledger")
