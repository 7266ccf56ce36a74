"""Keys wrapped by other keys: AES-256-GCM with a random nonce, bound to the place they belong to.

A wrapped key is standard base64 (80 characters) of nonce (12 bytes), ciphertext (32) and tag (16). Its associated data
is the canonical JSON of a list such as `["appliance/data-key/v1", store id, dataset id, epoch]`, so that a wrapped key
that is moved to another store, dataset or epoch does not open.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence

import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


def wrap(key: bytes | bytearray, context: Sequence[str | int], secret: bytes | bytearray) -> str:
    """Wrap a 32-byte secret under `key` (32 bytes) for one `context`. Every call draws a fresh nonce."""
    return _wrap(key, context, secret, os.urandom(_NONCE_BYTES))


def _wrap(key: bytes | bytearray, context: Sequence[str | int], secret: bytes | bytearray, nonce: bytes) -> str:
    """Wrap with a given nonce: only for test vectors, because a nonce that is used twice breaks the cipher."""
    sealed = AESGCM(key).encrypt(nonce, secret, rfc8785.dumps(list(context)))
    return base64.b64encode(nonce + sealed).decode()


def unwrap(key: bytes | bytearray, context: Sequence[str | int], wrapped: str) -> bytearray | None:
    """Unwrap the 32-byte secret; None if `wrapped` is malformed, was altered, or belongs to another key or context."""
    try:
        raw = base64.b64decode(wrapped.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    if len(raw) != _NONCE_BYTES + KEY_BYTES + _TAG_BYTES or base64.b64encode(raw).decode() != wrapped:
        return None
    secret = bytearray(KEY_BYTES)
    try:
        AESGCM(key).decrypt_into(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], rfc8785.dumps(list(context)), secret)
    except InvalidTag:
        return None
    return secret


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros. Copies that libraries or the interpreter made elsewhere are not reached."""
    buffer[:] = bytes(len(buffer))
