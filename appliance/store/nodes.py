"""Keys of compute nodes: to them the control node seals the key of a dataset, for one start of a run.

HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM), as for the bodies of the ledger. The digest of the ticket goes into
the sealing, so that the key opens with this ticket alone, unaltered. Anybody can seal to a node: that a ticket opens
says that nobody else reads it, not who wrote it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from appliance.errors import ArtefactMissing, IntegrityError, IsolationViolated, KeyUnavailable, UsageError
from appliance.files import write_atomic

PUBLIC, PRIVATE = "node.pub", "node.key"
_PUBLIC_PREFIX, _PRIVATE_PREFIX = "appliance-node-key/1 ", "appliance-node-private-key/1 "
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_HINT = "on the node: `appliance --home DIR node init`"


@dataclass(frozen=True, slots=True)
class NodeKey:
    """The public key of a node (32 bytes, X25519)."""

    public: bytes

    @staticmethod
    def parse(line: str) -> NodeKey:
        """Parse the key that `line` states. Raises `UsageError` if it is anything else than such a line."""
        match = re.fullmatch(re.escape(_PUBLIC_PREFIX) + r"([0-9a-f]{64})\n?", line)
        if match is None:
            raise UsageError("not the public key of a node", hint=f"the one line of node.pub; {_HINT}")
        return NodeKey(bytes.fromhex(match[1]))

    @property
    def line(self) -> str:
        """The key as one line, without its end."""
        return _PUBLIC_PREFIX + self.public.hex()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the public key's file: what `sha256sum node.pub` prints."""
        return hashlib.sha256(f"{self.line}\n".encode()).hexdigest()


def create(directory: Path) -> NodeKey:
    """Make a key pair in `directory` (made with mode 0700 if missing); the private half has mode 0600.

    Raises:
      UsageError: there is one already.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair = X25519PrivateKey.generate()
    node = NodeKey(pair.public_key().public_bytes_raw())
    secret = f"{_PRIVATE_PREFIX}{pair.private_bytes_raw().hex()}\n"
    write_atomic(directory / PRIVATE, secret.encode(), mode=0o600, replace=False)
    write_atomic(directory / PUBLIC, f"{node.line}\n".encode(), mode=0o644)
    return node


def read(directory: Path) -> NodeKey:
    """Read the public key of the pair in `directory`, from its private half. Raises as `unseal` does of the file."""
    return NodeKey(_private(directory).public_key().public_bytes_raw())


def seal(data_key: bytes, node: NodeKey, context: str) -> str:
    """Seal a 32-byte key to a node (base64), bound to `context`, the digest of a ticket (hex).

    Raises:
      KeyUnavailable: the public key is one to which nothing can be sealed.
    """
    try:
        sealed = _SUITE.encrypt(data_key, X25519PublicKey.from_public_bytes(node.public), info=_info(node, context))
    except ValueError:  # a point of low order
        raise KeyUnavailable("to this public key nothing can be sealed") from None
    return base64.b64encode(sealed).decode()


def unseal(sealed: str, directory: Path, context: str) -> bytes:
    """Unseal the key that `seal` sealed to the node whose pair lies in `directory`.

    Raises:
      ArtefactMissing: there is no pair.
      IsolationViolated: others can read the private key.
      IntegrityError: the file is damaged; or what was sealed, or its context, was altered.
    """
    pair = _private(directory)
    node = NodeKey(pair.public_key().public_bytes_raw())
    try:
        data_key: bytes = _SUITE.decrypt(base64.b64decode(sealed, validate=True), pair, info=_info(node, context))
    except (InvalidTag, ValueError, binascii.Error):
        raise IntegrityError("the key does not open: the ticket was altered") from None
    return data_key


def _private(directory: Path) -> X25519PrivateKey:
    path = directory / PRIVATE
    try:
        with path.open("rb") as file:
            mode, data = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read(256)
    except FileNotFoundError:
        raise ArtefactMissing("there is no node key here", hint=_HINT, where=str(path)) from None
    if mode & 0o077:
        raise IsolationViolated("others can read the private key of the node", hint="chmod 600", where=str(path))
    match = re.fullmatch(re.escape(_PRIVATE_PREFIX.encode()) + rb"([0-9a-f]{64})\n", data)
    if match is None:
        raise IntegrityError("the key file is damaged", where=str(path))
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(match[1].decode()))


def _info(node: NodeKey, context: str) -> bytes:
    return f"appliance/node-key/v1\n{node.fingerprint}\n{context}".encode()
