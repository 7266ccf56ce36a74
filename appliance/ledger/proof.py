"""Inclusion proofs as text (c2sp.org/tlog-proof@v1), and their verification without a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import IntegrityError
from appliance.ledger import merkle
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import Checkpoint, VerifierKey, decimal, decode64, encode64, open_checkpoint

_HEADER = "c2sp.org/tlog-proof@v1"
_CONSISTENCY_HEADER = "appliance.consistency/1"
_MAX_PATH = 63


@dataclass(frozen=True, slots=True)
class ProvenEntry:
    """An entry that a signed tree head covers: its index, its leaf, and the tree head."""

    index: int
    leaf: dict[str, Any]
    checkpoint: Checkpoint


def evidence(text: str, leaf: bytes) -> bytes:
    """Put a proof and the leaf it is about into one document: what a worker shows to the key agent."""
    return orjson.dumps({"proof": text, "leaf": encode64(leaf)})


def verify_evidence(document: bytes, trusted: Sequence[str]) -> ProvenEntry:
    """Check such a document as `verify` does. Raises `IntegrityError`."""
    try:
        shown = orjson.loads(document)
        text, leaf = str(shown["proof"]), decode64(shown["leaf"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise IntegrityError("not the evidence of an entry") from None
    return verify(text, leaf, trusted)


def encode(index: int, path: Sequence[bytes], note: str) -> str:
    """Write a proof as text: index, audit path from the leaf's sibling upwards, signed note."""
    lines = [_HEADER, f"index {index}", *(encode64(digest) for digest in path), ""]
    return "\n".join(lines) + "\n" + note


def encode_consistency(old_size: int, old_root: bytes, path: Sequence[bytes]) -> str:
    """Write a consistency proof: size and root of the earlier tree, then the hashes of RFC 6962, 2.1.2."""
    lines = [_CONSISTENCY_HEADER, f"old {old_size}", encode64(old_root), *(encode64(digest) for digest in path)]
    return "\n".join(lines) + "\n"


def verify_consistency(text: str, head: Checkpoint) -> Checkpoint:
    """Check that the tree of `head` continues the earlier one that a proof names; returns the earlier one.

    Raises:
      IntegrityError: the proof is malformed or does not hold.
    """
    lines = text.split("\n")
    size = lines[1].removeprefix("old ") if len(lines) > 3 and lines[1].startswith("old ") else ""
    if lines[0] != _CONSISTENCY_HEADER or lines[-1] or not decimal(size) or len(lines) > 4 + 2 * _MAX_PATH:
        raise IntegrityError("a consistency proof is malformed")
    root, *path = (decode64(line) for line in lines[2:-1])
    if any(len(digest) != 32 for digest in (root, *path)):
        raise IntegrityError("a consistency proof is malformed")
    merkle.check_consistency(int(size), head.size, root, head.root, path)
    return Checkpoint(head.origin, int(size), root)


def verify(text: str, leaf: bytes, trusted: Sequence[str]) -> ProvenEntry:
    """Check that `leaf` is in the log that the trusted keys signed. Pure: no database, no file, no clock.

    Args:
      text: the proof.
      leaf: the stored bytes of the leaf.
      trusted: C2SP verifier keys, each of which must have signed the tree head.

    Raises:
      IntegrityError: the proof or the leaf is malformed or does not hold.
    """
    index, path, note = _parse(text)
    checkpoint = open_checkpoint(note, [VerifierKey.parse(key) for key in trusted])
    root = merkle.root_from_inclusion(index, checkpoint.size, merkle.leaf_hash(leaf), path)
    if root != checkpoint.root:
        raise IntegrityError(f"entry {index} is not in the tree head that was shown")
    parsed = parse_leaf(leaf)
    if parsed.get("index") != index or parsed.get("origin") != checkpoint.origin:
        raise IntegrityError(f"entry {index} says that it stands elsewhere")
    return ProvenEntry(index, parsed, checkpoint)


def _parse(text: str) -> tuple[int, list[bytes], str]:
    top, blank, note = text.partition("\n\n")
    lines = top.split("\n")
    if not blank or lines[0] != _HEADER:
        raise IntegrityError("an inclusion proof is malformed")
    if len(lines) > 1 and lines[1].startswith("extra "):
        decode64(lines.pop(1).removeprefix("extra "))  # never trusted, only well-formed
    index = lines[1].removeprefix("index ") if len(lines) > 1 and lines[1].startswith("index ") else ""
    path = [decode64(line) for line in lines[2:]]
    if not decimal(index) or len(path) > _MAX_PATH or any(len(digest) != 32 for digest in path):
        raise IntegrityError("an inclusion proof is malformed")
    return int(index), path, note
