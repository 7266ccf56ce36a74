"""The keyslot file: the root key of a store, wrapped by a key that a passphrase gives.

The file is canonical JSON with a SHA-256 over itself. The checksum only tells damage from a wrong passphrase; what an
attacker changes on purpose, checksum included, fails the authentication of the wrapped key instead.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import Field

from appliance.errors import ArtefactMissing, IntegrityError, KeyUnavailable, UsageError, WillNotFit
from appliance.files import write_atomic
from appliance.store.keys import RootKey, StoreId, read_canonical
from appliance.store.normalisation import normalised
from appliance.store.wrapping import KEY_BYTES, _wrap, unwrap, wipe
from appliance.values import Digest, Value, to_json

_NO_CHECKSUM = "0" * 64


@dataclass(frozen=True, slots=True)
class Argon2Cost:
    """What one guess of the passphrase costs (Argon2id, RFC 9106).

    Attributes:
      memory_kib: memory in KiB.
      iterations: passes over the memory.
      lanes: degree of parallelism.
    """

    memory_kib: int = 256 * 1024
    iterations: int = 3
    lanes: int = 4


class PassphraseSlot(Value):
    """One way to the root key. The upper bounds keep a hostile file from exhausting memory or time."""

    kind: Literal["passphrase"] = "passphrase"
    kdf: Literal["argon2id"] = "argon2id"
    memory_kib: Annotated[int, Field(ge=8, le=4 * 1024 * 1024)]
    iterations: Annotated[int, Field(ge=1, le=64)]
    lanes: Annotated[int, Field(ge=1, le=64)]
    salt: str
    wrapped: str


class KeyslotFile(Value):
    """The whole file. Version 1 has exactly one slot."""

    schema_: Literal["appliance.keyslots/1"] = Field("appliance.keyslots/1", alias="schema")
    store_id: StoreId
    slots: Annotated[tuple[PassphraseSlot, ...], Field(min_length=1, max_length=1)]
    sha256: Digest


def create(path: Path, passphrase: bytes | bytearray, *, cost: Argon2Cost | None = None) -> RootKey:
    """Draw a new root key and write it, wrapped, to `path`.

    Args:
      path: the keyslot file; must not exist.
      passphrase: any non-empty text, as UTF-8; compared after Unicode NFKC normalisation.
      cost: `Argon2Cost()` unless given; only tests have a reason to give less.

    Raises:
      UsageError: the passphrase is empty or the file exists.
      WillNotFit: not enough memory for the key derivation, or a full disk.
    """
    if path.exists():
        raise UsageError("the store already has a keyslot file; it is not replaced", where=str(path))
    return _create(path, passphrase, cost or Argon2Cost(), os.urandom(16 + 16 + 12 + KEY_BYTES))


def _create(path: Path, passphrase: bytes | bytearray, cost: Argon2Cost, random: bytes) -> RootKey:
    """Create with given randomness (store id 16, salt 16, nonce 12, root key 32 bytes): only for test vectors."""
    store_id, salt, nonce = random[:16].hex(), base64.b64encode(random[16:32]).decode(), random[32:44]
    root = RootKey(store_id, bytearray(random[44:]))
    slot = PassphraseSlot(
        memory_kib=cost.memory_kib, iterations=cost.iterations, lanes=cost.lanes, salt=salt, wrapped=""
    )
    key = _slot_key(slot, random[16:32], passphrase)
    slot = slot.model_copy(update={"wrapped": _wrap(key, _context(store_id, slot), root.buffer, nonce)})
    wipe(key)
    file = KeyslotFile(schema="appliance.keyslots/1", store_id=store_id, slots=(slot,), sha256=_NO_CHECKSUM)
    file = file.model_copy(update={"sha256": _checksum(file)})
    write_atomic(path, to_json(file), replace=False)
    return root


def unlock(path: Path, passphrase: bytes | bytearray) -> RootKey:
    """Open the root key of the store.

    Raises:
      ArtefactMissing: there is no keyslot file.
      KeyUnavailable: the passphrase is wrong (or the file was rewritten on purpose).
      IntegrityError: the file is damaged.
      WillNotFit: not enough memory for the key derivation.
    """
    file = _read(path)
    slot = file.slots[0]
    key = _slot_key(slot, _salt(slot, path), passphrase)
    secret = unwrap(key, _context(file.store_id, slot), slot.wrapped)
    wipe(key)
    if secret is None:
        raise KeyUnavailable("the passphrase does not open the store", where=str(path))
    return RootKey(file.store_id, secret)


def store_id(path: Path) -> str:
    """Read the id of the store, also while it is sealed. Raises as `unlock` does, except for the passphrase."""
    return _read(path).store_id


def _read(path: Path) -> KeyslotFile:
    try:
        file = read_canonical(path, KeyslotFile)
    except ArtefactMissing:
        raise ArtefactMissing("there is no keyslot file here", hint="appliance init", where=str(path)) from None
    if file.sha256 != _checksum(file):
        raise IntegrityError("the keyslot file is damaged", hint="restore it from a backup", where=str(path))
    return file


def _checksum(file: KeyslotFile) -> str:
    return hashlib.sha256(to_json(file.model_copy(update={"sha256": _NO_CHECKSUM}))).hexdigest()


def _context(store_id: str, slot: PassphraseSlot) -> list[str | int]:
    return ["appliance/root-key/v1", store_id, slot.kdf, slot.memory_kib, slot.iterations, slot.lanes, slot.salt]


def _salt(slot: PassphraseSlot, path: Path) -> bytes:
    try:
        salt = base64.b64decode(slot.salt, validate=True)
    except (ValueError, binascii.Error):
        salt = b""
    if len(salt) != 16:
        raise IntegrityError("the keyslot file has a malformed salt", where=str(path))
    return salt


def _slot_key(slot: PassphraseSlot, salt: bytes, passphrase: bytes | bytearray) -> bytearray:
    if not passphrase:
        raise UsageError("the passphrase is empty")
    if slot.memory_kib < 8 * slot.lanes:
        raise IntegrityError("the keyslot file asks for less memory than Argon2id allows")
    kdf = Argon2id(
        salt=salt, length=KEY_BYTES, iterations=slot.iterations, lanes=slot.lanes, memory_cost=slot.memory_kib
    )
    key = bytearray(KEY_BYTES)
    try:
        with normalised(passphrase) as text:
            kdf.derive_into(text, key)  # type: ignore[arg-type]  # takes any buffer
    except MemoryError:
        raise WillNotFit(f"unlocking needs {slot.memory_kib // 1024} MiB of memory for a moment") from None
    return key
