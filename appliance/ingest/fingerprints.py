"""Keyed fingerprints: what a dataset is made of, comparable without being readable.

They let the budget follow the data: a rename, a second ingest or another choice of columns is recognised as the same
units. Without the key nobody can test whether some text is among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from html import unescape
from typing import Any

import blake3
import numpy as np
from numpy.typing import NDArray

from appliance.errors import IntegrityError
from appliance.ingest.sameness import squeeze, words
from appliance.ingest.shapes import Parts

SIZE = 16
_GAP = re.compile(r"\n[^\S\n]*\n")
LONG_ENOUGH = 32  # characters besides blanks; a shorter text says little about where it comes from
LONG_PASSAGE = 100  # the same of a passage inside a text: letterheads and set phrases are shorter


class Fingerprinter:
    """Computes 16-byte fingerprints under one 32-byte key, with a derived key for each kind of thing."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a fingerprint key has 32 bytes")
        names = (b"subject", b"record", b"content", b"pair", b"side")
        self._subject, self._record, self._content, self._pair, self._side = (
            blake3.blake3(b"appliance/fingerprint/2/" + name, key=key).digest() for name in names
        )

    def subject(self, name: str) -> bytes:
        """Fingerprint a subject's name."""
        return _hash(squeeze(name), self._subject)

    def record(self, parts: Parts) -> bytes:
        """Fingerprint what a record says."""
        return _hash("\x1f".join(squeeze(text) for _, text in parts), self._record)

    def pair(self, subject: bytes, record: bytes) -> bytes:
        """Combine the fingerprints of a subject and a record."""
        return _hash(subject + record, self._pair)

    def is_held_out(self, unit: bytes, fraction: Fraction) -> bool:
        """Tell whether a unit belongs to the fraction of all units that is held out.

        The rule: the first 8 bytes of a keyed BLAKE3 of its fingerprint, a big-endian number, are below 2**64 times the
        fraction. A unit is thus always on the same side, in every file, and stays held out under a larger fraction.
        """
        drawn = int.from_bytes(blake3.blake3(unit, key=self._side).digest(length=8), "big")
        return drawn < fraction * (1 << 64)

    def contents(
        self, fields: dict[str, Any], columns: Sequence[str], parts: Parts, sources: Iterable[str] = ()
    ) -> bytes:
        """Fingerprint what a source row says, so that it is known again however it is presented.

        All its cells together, those that the record was made of, and the record as it became: each in its order, and
        its words without any order, so that other columns, templates or joined columns make no difference. Each long
        cell by itself and each long paragraph and line in it, whatever the split; but nothing of system messages, as
        one instruction in two datasets does not make them overlap.

        Args:
          fields: the row.
          columns: those that the record was made of; none if its shape says.
          parts: of the record.
          sources: texts that the row is a part of.
        """
        spoken = {text for role, text in parts if role != "system"}
        given = {text for role, text in parts if role == "system"} - spoken
        texts = [(text, text in given) for text in _texts(fields)]
        cells = [(words(text), shared) for text, shared in texts]
        used = [words(text) for text in _texts({name: fields.get(name) for name in columns})]
        said = [words(text) for role, text in parts if role != "system"]
        found = {"".join(cell) for cell, shared in cells if not shared and _is_long(cell, LONG_ENOUGH)}
        longer = [*sources, *(text for text, shared in texts if not shared)]
        inside = (words(passage) for text in longer for passage in _passages(text))
        found |= {"".join(passage) for passage in inside if _is_long(passage, LONG_PASSAGE)}
        for whole in ([cell for cell, _ in cells], used, said):
            flat = [word for cell in whole for word in cell]
            found |= {"".join(flat), "\x1f".join(sorted(flat))} if flat else set()
        return b"".join(_hash(text, self._content) for text in sorted(found))


def _is_long(text: list[str], enough: int) -> bool:
    return sum(map(len, text)) >= enough


def _passages(text: str) -> list[str]:
    """Cut a text into its paragraphs and its lines, whatever ends them."""
    if len(text) < LONG_PASSAGE:
        return []
    lines = (unescape(text) if "&" in text else text).splitlines()
    return [*_GAP.split("\n".join(lines)), *lines]


def _hash(data: str | bytes, key: bytes) -> bytes:
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    digest: bytes = blake3.blake3(data, key=key).digest(length=SIZE)
    return digest


def _texts(fields: dict[str, Any]) -> list[str]:
    """List every scalar of a row as text, in order."""
    found: list[str] = []
    stack: list[Any] = [fields]
    while stack:
        value = stack.pop()
        if type(value) is str:
            found.append(value)
        elif type(value) is dict:
            stack.extend(reversed(value.values()))
        elif type(value) is list:
            stack.extend(reversed(value))
        elif value is not None:
            found.append(str(value))
    return found


def sort_unique(fingerprints: bytes | bytearray) -> bytes:
    """Sort the 16-byte rows of `fingerprints`, and keep each once."""
    return np.unique(_rows(fingerprints)).tobytes()


def overlap(a: bytes, b: bytes) -> bool:
    """Tell whether two sets of fingerprints, as `sort_unique` writes them, share at least one.

    Raises:
      IntegrityError: if one of them is not a whole number of fingerprints.
    """
    few, many = sorted((_rows(a), _rows(b)), key=len)
    if not len(few):
        return False
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return bool(np.any(many[at] == few))


def _rows(fingerprints: bytes | bytearray) -> NDArray[np.bytes_]:
    if len(fingerprints) % SIZE:
        raise IntegrityError("a list of fingerprints is damaged")
    return np.frombuffer(fingerprints, dtype=f"S{SIZE}")
