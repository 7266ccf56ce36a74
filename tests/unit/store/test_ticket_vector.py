"""The golden ticket opens for ever; a second reader, written from docs/spec/job.md and RFC 9180, opens it too."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.jobs.ticket import Ticket
from appliance.store import nodes
from appliance.values import to_json

VECTORS = Path(__file__).parents[2] / "vectors" / "ticket"
DATA_KEY = bytes(range(32))


def test_the_golden_ticket_opens(tmp_path: Path) -> None:
    shutil.copy(VECTORS / nodes.PRIVATE, tmp_path)
    (tmp_path / nodes.PRIVATE).chmod(0o600)  # version control keeps no modes
    data = (VECTORS / "ticket.json").read_bytes()
    ticket = Ticket.model_validate_json(data)
    assert to_json(ticket) == data
    assert ticket.node == nodes.read(tmp_path).fingerprint
    assert nodes.unseal(ticket.sealed, tmp_path, ticket.context()) == DATA_KEY


def test_a_second_reader_opens_it() -> None:
    data = (VECTORS / "ticket.json").read_bytes()
    ticket = json.loads(data)
    bare = data.replace(ticket["sealed"].encode(), b"")
    private = bytes.fromhex((VECTORS / nodes.PRIVATE).read_text().split()[1])
    lines = ("appliance/node-key/v1", ticket["node"], hashlib.sha256(bare).hexdigest())
    assert hpke_open(base64.b64decode(ticket["sealed"]), private, "\n".join(lines).encode()) == DATA_KEY


def hpke_open(sealed: bytes, private: bytes, info: bytes) -> bytes:
    """RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""
    kem, suite = b"KEM\0\x20", b"HPKE\0\x20\0\x01\0\x02"
    pair, sent = X25519PrivateKey.from_private_bytes(private), sealed[:32]
    shared = pair.exchange(X25519PublicKey.from_public_bytes(sent))
    both = sent + pair.public_key().public_bytes_raw()
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", both, 32)
    schedule = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, secret, b"secret", b"")
    key, nonce = (expand(suite, secret, label, schedule, size) for label, size in ((b"key", 32), (b"base_nonce", 12)))
    return AESGCM(key).decrypt(nonce, sealed[32:], b"")


def extract(suite: bytes, salt: bytes, label: bytes, value: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + value, "sha256")


def expand(suite: bytes, secret: bytes, label: bytes, info: bytes, size: int) -> bytes:
    labelled = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(secret, labelled + b"\1", "sha256")[:size]  # one block: no size is above 32
