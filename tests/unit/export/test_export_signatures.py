"""The verifier's own Ed25519 and ML-DSA-44 against published vectors and against `cryptography`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from appliance.export import verify

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "signatures.json").read_text())
WYCHEPROOF = json.loads((Path(__file__).parents[2] / "vectors" / "wycheproof.json").read_text())
SMALL_ORDER = (  # encodings of the eight points of small order, and of two of them not in canonical form
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


@pytest.mark.parametrize("number", range(len(VECTORS["ed25519"])))
def test_ed25519_vectors(number: int) -> None:
    public, message, signature = (
        bytes.fromhex(VECTORS["ed25519"][number][k]) for k in ("public", "message", "signature")
    )
    assert verify.ed25519_accepts(public, message, signature)
    assert not verify.ed25519_accepts(public, message + b"x", signature)
    s = int.from_bytes(signature[32:], "little") + verify.ORDER
    assert not verify.ed25519_accepts(public, message, signature[:32] + s.to_bytes(32, "little"))
    for short in (signature[:-1], signature + b"\0", b""):
        assert not verify.ed25519_accepts(public, message, short)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_ed25519_refuses_keys_that_sign_everything(point: str) -> None:
    # With A of order 1, R = [S]B verifies for every message; other small orders for a part of them.
    base = verify.point_decode((4 * pow(5, -1, verify.P) % verify.P).to_bytes(32, "little"))
    assert base is not None
    r = verify.point_encode(verify.point_multiply(5, base))
    for message in (b"a", b"b", b"c"):
        assert not verify.ed25519_accepts(bytes.fromhex(point), message, r + (5).to_bytes(32, "little"))


def test_ed25519_agrees_with_another_implementation(stress_count: Callable[[int, int], int]) -> None:
    for _ in range(stress_count(15, 1000)):
        key, message = Ed25519PrivateKey.generate(), os.urandom(40)
        public, signature = key.public_key().public_bytes_raw(), key.sign(message)
        assert verify.ed25519_accepts(public, message, signature)
        for kind in range(3):
            parts = [public, message, signature]
            parts[kind] = flipped(parts[kind])
            assert verify.ed25519_accepts(*parts) == oracle_ed25519(*parts)


def oracle_ed25519(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def flipped(data: bytes) -> bytes:
    place = int.from_bytes(os.urandom(4), "big") % (8 * len(data))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_wycheproof_ed25519() -> None:
    for case in WYCHEPROOF["ed25519"]:
        public, message, signature = (bytes.fromhex(case[name]) for name in ("public", "message", "signature"))
        assert verify.ed25519_accepts(public, message, signature) == case["valid"], (case["number"], case["why"])


def test_wycheproof_mldsa44() -> None:
    for case in WYCHEPROOF["mldsa44"]:
        names = ("public", "message", "signature", "context")
        parts = [bytes.fromhex(case[name]) for name in names]
        assert verify.mldsa44_accepts(*parts) == case["valid"], (case["number"], case["why"])


def test_mldsa44_vectors() -> None:
    for case in VECTORS["mldsa44"]:
        names = ("public", "message", "signature", "context")
        public, message, signature, context = (bytes.fromhex(case[name]) for name in names)
        assert verify.mldsa44_accepts(public, message, signature, context)
        assert not verify.mldsa44_accepts(public, message + b"x", signature, context)
        assert not verify.mldsa44_accepts(public, message, signature, context[1:])
        assert not verify.mldsa44_accepts(public, message, signature[:-1], context)


def oracle_mldsa44(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        MLDSA44PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_mldsa44_agrees_with_another_implementation(stress_count: Callable[[int, int], int]) -> None:
    for _ in range(stress_count(8, 300)):
        key, message = MLDSA44PrivateKey.generate(), os.urandom(40)
        public, signature = key.public_key().public_bytes_raw(), key.sign(message)
        assert verify.mldsa44_accepts(public, message, signature)
        for kind in range(3):
            parts = [public, message, signature]
            parts[kind] = flipped(parts[kind])
            assert verify.mldsa44_accepts(*parts) == oracle_mldsa44(*parts)


def test_mldsa44_hints_have_one_encoding() -> None:
    """FIPS 204, algorithm 21: positions in order, counts that grow, zeros behind them."""
    key = MLDSA44PrivateKey.generate()
    public, message = key.public_key().public_bytes_raw(), b"hints"
    refused = 0
    for _ in range(6):
        signature = bytearray(key.sign(message))
        places, counts = signature[2336:2416], signature[2416:]
        swapped = bytearray(signature)
        if counts[0] >= 2:
            swapped[2336:2338] = bytes((places[1], places[0]))
            refused += not verify.mldsa44_accepts(public, message, bytes(swapped))
            doubled = bytearray(signature)
            doubled[2337] = doubled[2336]
            assert not verify.mldsa44_accepts(public, message, bytes(doubled))
        if counts[3] < 80:
            padded = bytearray(signature)
            padded[2415] = 7
            assert not verify.mldsa44_accepts(public, message, bytes(padded))
        beyond = bytearray(signature)
        beyond[2419] = 81
        assert not verify.mldsa44_accepts(public, message, bytes(beyond))
    assert refused


def test_mldsa44_refuses_a_vector_that_is_too_long() -> None:
    """A z with a coefficient at the bound: 18 bits of zero mean 2^17, above 2^17 - 78."""
    key = MLDSA44PrivateKey.generate()
    signature = bytearray(key.sign(b"m"))
    signature[32:35] = bytes(3)
    assert not verify.mldsa44_accepts(key.public_key().public_bytes_raw(), b"m", bytes(signature))
