"""The register: which digest each business row must have, and where the entries of each kind are.

It is read from the bytes of leaves alone, in the order of the log, and says nothing until the root over these leaves
was compared with a signed one (`proving.py` does). A copy of it, signed with the log's Ed25519 key, spares the next
process the leaves that it covers. An older copy costs the leaves that came since, a missing or damaged one all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection

from appliance.errors import IntegrityError
from appliance.files import write_atomic
from appliance.ledger import dialect, merkle
from appliance.ledger.canonical import encode
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import VerifierKey, decode64, encode64

_TAG = b"appliance/ledger/register/v1\n"  # no tree head begins like a register: its second line is a number
_SCHEMA = "appliance.ledger.register/1"
_AT_ONCE = 1000
_NEXT = f"SELECT idx, leaf FROM entry WHERE idx >= ? ORDER BY idx LIMIT {_AT_ONCE}"  # noqa: S608 (our own number)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a kind: its index, what it is about, the hash of its leaf (hex)."""

    index: int
    subject: str | None
    leaf_hash: str


class Register:
    """What the first `size` entries of a log say, and the roots of their complete subtrees, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self.frontier: list[bytes] = []
        self._rows: dict[str, dict[str, str]] = {}
        self._entries: dict[str, list[list[Any]]] = {}

    @property
    def root(self) -> bytes:
        """Root over the entries."""
        return merkle.fold(self.frontier)

    def rows(self, table: str) -> Mapping[str, str]:
        """Say which rows a table has: their keys, and the SHA-256 that the newest entry which covers each states."""
        return self._rows.get(table, {})

    def entries(self, type_: str) -> list[Found]:
        """List the entries of a kind, oldest first."""
        return [Found(*found) for found in self._entries.get(type_, ())]

    def newest(self, type_: str) -> Found | None:
        """Find the newest entry of a kind."""
        found = self._entries.get(type_)
        return Found(*found[-1]) if found else None

    def find(self, type_: str, index: int) -> Found | None:
        """Find the entry of a kind that has this index."""
        found = self._entries.get(type_, [])
        place = bisect_left(found, index, key=itemgetter(0))
        return Found(*found[place]) if place < len(found) and found[place][0] == index else None

    def follow(self, connection: Connection) -> None:
        """Read on to the end of the log. Raises `IntegrityError` for an entry that is missing or holds no leaf."""
        while True:
            rows = dialect.of(connection).run(connection, [(_NEXT, (self.size,))])
            for index, leaf in rows:
                if index != self.size or not isinstance(leaf, bytes):
                    raise IntegrityError(f"entry {self.size} of the ledger is missing or damaged")
                self._add(leaf)
            if len(rows) < _AT_ONCE:
                return

    def _add(self, data: bytes) -> None:
        digest, leaf = merkle.leaf_hash(data), parse_leaf(data)
        try:
            for row in leaf["rows"]:
                self._rows.setdefault(row["table"], {})[row["key"]] = row["sha256"]
            self._entries.setdefault(leaf["type"], []).append([self.size, leaf["subject"], digest.hex()])
        except (KeyError, TypeError):
            raise IntegrityError(f"entry {self.size} holds no leaf") from None
        self.frontier = merkle.extend(self.frontier, self.size, [digest])
        self.size += 1

    def save(self, path: Path, sign: Callable[[bytes], bytes]) -> None:
        """Write a signed copy. Raises `WillNotFit`."""
        statement = encode(
            {
                "schema": _SCHEMA,
                "size": self.size,
                "frontier": [root.hex() for root in self.frontier],
                "rows": self._rows,
                "entries": self._entries,
            }
        )
        write_atomic(path, encode64(sign(_TAG + statement)).encode() + b"\n" + statement)

    @staticmethod
    def load(path: Path, key: VerifierKey) -> Register | None:
        """Read a copy that this key signed; None where there is none, or another one than this release would make."""
        try:
            signature, _, statement = path.read_bytes().partition(b"\n")
            if not key.has_signed(_TAG + statement, decode64(signature.decode())):
                return None
        except (OSError, UnicodeDecodeError, IntegrityError):
            return None
        stated, register = orjson.loads(statement), Register()
        if stated["schema"] != _SCHEMA:
            return None
        register.size = stated["size"]
        register.frontier = [bytes.fromhex(root) for root in stated["frontier"]]
        register._rows, register._entries = stated["rows"], stated["entries"]
        return register
