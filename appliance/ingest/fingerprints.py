"""Keyed fingerprints: what a dataset is made of, comparable without being readable.

They let the budget follow the data: a rename, a second ingest or another choice of columns is recognised as the same
units. Without the key nobody can test whether some text is among them.
"""

from __future__ import annotations

from html import unescape
from typing import Any

import blake3
import numpy as np
import orjson
from numpy.typing import NDArray

from appliance.errors import IntegrityError
from appliance.ingest.shapes import Parts

SIZE = 16
LONG_ENOUGH = 40  # characters; a shorter text says little about where it comes from


class Fingerprinter:
    """Computes 16-byte fingerprints under one 32-byte key, with a derived key for each kind of thing."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a fingerprint key has 32 bytes")
        names = (b"subject", b"record", b"text", b"row", b"pair")
        self._subject, self._record, self._text, self._row, self._pair = (
            blake3.blake3(b"appliance/fingerprint/1/" + name, key=key).digest() for name in names
        )

    def subject(self, name: str) -> bytes:
        """Fingerprint a subject's name; spelling in upper or lower case and blanks do not matter."""
        return _hash(_normal(name).encode(), self._subject)

    def record(self, kind: str, parts: Parts) -> bytes:
        """Fingerprint a whole record, exactly."""
        return _hash(orjson.dumps((kind, parts)), self._record)

    def pair(self, subject: bytes, record: bytes) -> bytes:
        """Combine the fingerprints of a subject and a record."""
        return _hash(subject + record, self._pair)

    def row(self, fields: dict[str, Any]) -> bytes:
        """Fingerprint each long text of a source row, and all its values together, concatenated.

        The values together recognise rows of short texts under other column names. Texts of system messages count
        only there: the same instruction in two datasets does not make them overlap.
        """
        found = bytearray()
        values = []
        for text, shared in _texts(fields):
            normal = _normal(text)
            values.append(normal)
            if len(normal) >= LONG_ENOUGH and not shared:
                found += _hash(normal.encode(), self._text)
        values.sort()
        whole = "\x1f".join(values)
        if len(values) > 1 and len(whole) >= LONG_ENOUGH:
            found += _hash(whole.encode(), self._row)
        return bytes(found)


def _hash(data: bytes, key: bytes) -> bytes:
    digest: bytes = blake3.blake3(data, key=key).digest(length=SIZE)
    return digest


def _normal(text: str) -> str:
    """Leave out differences of white space, case and HTML escaping."""
    return " ".join((unescape(text) if "&" in text else text).split()).casefold()


def _texts(fields: dict[str, Any]) -> list[tuple[str, bool]]:
    """List every scalar of a row as text, and whether it belongs to a system message."""
    found: list[tuple[str, bool]] = []
    stack: list[tuple[Any, bool]] = [(fields, False)]
    while stack:
        value, shared = stack.pop()
        if type(value) is str:
            found.append((value, shared))
        elif type(value) is dict:
            shared = shared or value.get("role") == "system"
            stack.extend([(part, shared) for part in value.values()])
        elif type(value) is list:
            stack.extend([(part, shared) for part in value])
        elif value is not None:
            found.append((str(value), shared))
    return found


def sort_unique(fingerprints: bytes | bytearray) -> bytes:
    """Sort the 16-byte rows of `fingerprints`, and keep each once."""
    return np.unique(_rows(fingerprints)).tobytes()


def overlap(a: bytes, b: bytes) -> bool:
    """Tell whether two sets of fingerprints, as `sorted_unique` writes them, share at least one.

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
