"""The public commitment to a secret key: it binds to the key and reveals nothing of it.

A key of 32 random bytes needs no salt of its own: to find it from the digest is to search 2^256 keys.
"""

from __future__ import annotations

import hashlib

from appliance.errors import KeyUnavailable
from appliance.store.wrapping import KEY_BYTES

_TAG = b"appliance/watermark-key/v1\x00"


def commit_to(key: bytes | bytearray) -> str:
    """Digest a tag and the key by SHA-256, in hex. Raises `KeyUnavailable` unless the key has 32 bytes."""
    if len(key) != KEY_BYTES:
        raise KeyUnavailable("a watermark key has 32 bytes")
    return hashlib.sha256(_TAG + key).hexdigest()
