"""Entry bodies: the personal part of an entry (names, reasons), sealed to a public key and erasable.

A body is canonical JSON. `salt || body` is sealed with HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM), so that
entries can be written while the store is sealed; the leaf commits to salt and body and to the sealed bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from appliance.errors import IntegrityError, KeyUnavailable
from appliance.ledger.canonical import canonical

_COMMIT_TAG = b"appliance/ledger/body/v1\n"
_SALT = 32
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class BodyVerdict(StrEnum):
    """What can be said of an entry's body."""

    OK = "ok"  # opened, and it is what the leaf committed to
    SEALED = "sealed"  # the sealed bytes are what the leaf committed to; nobody opened them
    ERASED = "erased"  # gone, and a later entry says that it was erased
    MISSING = "missing"  # gone, or not what the leaf committed to


@dataclass(frozen=True, slots=True)
class SealedBody:
    """Sealed bytes and the two digests (hex) that the leaf states."""

    sealed: bytes
    commitment: str
    sealed_sha256: str


def seal(body: dict[str, str], public_key: bytes, origin: str) -> SealedBody:
    """Seal a body to the 32-byte X25519 public key."""
    salt, data = os.urandom(_SALT), canonical(body)
    key = X25519PublicKey.from_public_bytes(public_key)
    sealed = _SUITE.encrypt(salt + data, key, info=_info(origin))
    return SealedBody(sealed, commitment(salt, data), sha256(sealed).hexdigest())


def commitment(salt: bytes, body: bytes) -> str:
    """Commit to a body: hex SHA-256(tag || salt || body); the salt is 32 bytes."""
    return sha256(_COMMIT_TAG + salt + body).hexdigest()


def unseal(sealed: bytes, committed: str, private_key: bytes, origin: str) -> dict[str, str]:
    """Open a sealed body whose digest the caller has checked against the leaf.

    Raises:
      KeyUnavailable: the 32-byte X25519 private key is not the one it was sealed to.
      IntegrityError: it opens, but is not what the leaf committed to.
    """
    try:
        plain = _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private_key), info=_info(origin))
    except (InvalidTag, ValueError):
        raise KeyUnavailable("the key does not open this body of the ledger") from None
    salt, data = plain[:_SALT], plain[_SALT:]
    if commitment(salt, data) != committed:
        raise IntegrityError("a body is not what its entry committed to")
    body: dict[str, str] = orjson.loads(data)
    return body


def _info(origin: str) -> bytes:
    return b"appliance/ledger/body-seal/v1\n" + origin.encode()
