"""The leaf of an entry: what is hashed into the log, as canonical JSON of at most 65,535 bytes."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import orjson

import appliance
from appliance.errors import ApplianceError, IntegrityError
from appliance.ledger.canonical import MAX_LEAF, LeafInvalid, encode

VERSION = "appliance.ledger.leaf/1"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. The pseudonym stands in the leaf; the name only ever in a sealed body.

    Attributes:
      pseudonym: random and stable for a person; says nothing by itself.
      name: the person's name; may be empty, then nothing is sealed for it.
      auth: "asserted" (the operating system's word) or "signed" (by the person's key).
    """

    pseudonym: str
    name: str
    auth: Literal["asserted", "signed"] = "asserted"

    def __repr__(self) -> str:
        return f"Actor({self.pseudonym})"


def encode_leaf(leaf: dict[str, Any]) -> bytes:
    """Encode a leaf whose facts were checked. Raises `LeafInvalid` when it is too long."""
    data = encode(leaf)
    if len(data) > MAX_LEAF:
        raise LeafInvalid(f"an entry of {len(data)} bytes is too long for the ledger")
    return data


def parse_leaf(data: bytes) -> dict[str, Any]:
    """Read the leaf as a dictionary. Raises `IntegrityError` unless it is a JSON object of our version."""
    try:
        leaf = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise IntegrityError("a leaf of the ledger is not JSON") from None
    if not isinstance(leaf, dict) or leaf.get("v") != VERSION:
        raise IntegrityError(f"a leaf of the ledger is not {VERSION}")
    return leaf


def timestamp(moment: datetime) -> str:
    """Write a time by RFC 3339 in UTC with microseconds, always 27 characters, so that text order is time order."""
    if moment.tzinfo is None:
        raise ApplianceError("a time without a time zone cannot stand in the ledger")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_event_id() -> str:
    """Draw a UUID version 7 (RFC 9562): its first bits are the time, so that the index on it grows at one end."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@functools.cache
def boot_id() -> str:
    """Identify the boot of this machine, so that a clock set between boots can be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


@functools.cache
def software() -> dict[str, str]:
    """State the version that runs and the SHA-256 over its source files (path, length, content; sorted by path)."""
    package = Path(appliance.__file__).resolve().parent
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\n{len(data)}\n".encode() + data)
    return {"version": appliance.__version__, "sha256": digest.hexdigest()}
