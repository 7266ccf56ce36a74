"""C2SP signed notes and checkpoints, with Ed25519 (0x01) and ML-DSA-44 (0x06) signature lines.

Formats: c2sp.org/signed-note, c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature (for ML-DSA-44, which signs the
origin, size and root rather than the text; therefore a checkpoint here never has extension lines).
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from appliance.errors import IntegrityError
from appliance.names import is_unruly

ED25519 = 0x01
COSIGNATURE = 0x04  # of a witness, with Ed25519
MLDSA44 = 0x06
ALGORITHMS = {ED25519: "Ed25519", COSIGNATURE: "Ed25519 cosignature", MLDSA44: "ML-DSA-44"}
_PUBLIC_BYTES = {ED25519: 32, COSIGNATURE: 32, MLDSA44: 1312}
_MAX_NOTE = 100_000
_MAX_LINES = 16
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f]")  # all but the newline


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a tree head says: log `origin`, number of leaves, 32-byte root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Write the note text that is signed."""
        return f"{self.origin}\n{self.size}\n{encode64(self.root)}\n"

    @staticmethod
    def parse(text: str) -> Checkpoint:
        """Parse a note text. Raises `IntegrityError` unless it is exactly a checkpoint."""
        lines = text.split("\n")
        if len(lines) != 4 or not lines[0] or not decimal(lines[1]):
            raise IntegrityError("a tree head is malformed")
        checkpoint = Checkpoint(lines[0], int(lines[1]), decode64(lines[2]))
        if checkpoint.text() != text or len(checkpoint.root) != 32:
            raise IntegrityError("a tree head is malformed")
        return checkpoint


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key as C2SP names it: key name, signature type, raw public key."""

    name: str
    algorithm: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes: SHA-256(name || 0x0A || type || public key)[:4]."""
        return sha256(f"{self.name}\n".encode() + bytes([self.algorithm]) + self.public).digest()[:4]

    def encode(self) -> str:
        """Write the vkey text: name+hex(id)+base64(type || public key)."""
        return f"{self.name}+{self.key_id.hex()}+{encode64(bytes([self.algorithm]) + self.public)}"

    @staticmethod
    def parse(text: str) -> VerifierKey:
        """Parse a vkey text. Raises `IntegrityError` when it is malformed."""
        parts = text.split("+", 2)
        raw = decode64(parts[2]) if len(parts) == 3 else b""
        if not raw or not valid_name(parts[0]) or len(raw) - 1 != _PUBLIC_BYTES.get(raw[0]):
            raise IntegrityError("a verifier key is malformed")
        key = VerifierKey(parts[0], raw[0], raw[1:])
        if key.encode() != text:
            raise IntegrityError("a verifier key is malformed")
        return key

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Tell whether `signature` is this key's signature of a message that is no checkpoint."""
        try:
            if self.algorithm == MLDSA44:
                MLDSA44PublicKey.from_public_bytes(self.public).verify(signature, message)
            else:
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def accepts(self, text: str, signature: bytes) -> bool:
        """Tell whether `signature` (without the key id) is this key's signature of the checkpoint `text`."""
        try:
            if self.algorithm == ED25519:
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
            elif self.algorithm == COSIGNATURE:
                message = witnessed_message(text, int.from_bytes(signature[:8], "big"))
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature[8:], message)
            elif len(signature) == 8 + 2420:
                message = cosigned_message(self.name, Checkpoint.parse(text), int.from_bytes(signature[:8], "big"))
                MLDSA44PublicKey.from_public_bytes(self.public).verify(signature[8:], message)
            else:
                return False
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer(Protocol):
    """Something that signs checkpoints: a private key beside its public part."""

    @property
    def verifier(self) -> VerifierKey:
        """The public part."""

    def sign(self, text: str) -> bytes:
        """Sign the note text, as `VerifierKey.accepts` takes it."""

    def sign_statement(self, message: bytes) -> bytes:
        """Sign a message that is no checkpoint, as `VerifierKey.has_signed` takes it."""


def cosigned_message(name: str, checkpoint: Checkpoint, timestamp: int) -> bytes:
    """Write what an ML-DSA-44 line signs, as c2sp.org/tlog-cosignature has it; `timestamp` in POSIX seconds."""
    return b"".join(
        (
            b"subtree/v1\n\0",
            _opaque(name),
            struct.pack(">Q", timestamp),
            _opaque(checkpoint.origin),
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        )
    )


def witnessed_message(text: str, timestamp: int) -> bytes:
    """Write what a witness's Ed25519 line signs: `cosignature/v1` of c2sp.org/tlog-cosignature, over the note text."""
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def sign_checkpoint(checkpoint: Checkpoint, signers: Sequence[Signer]) -> str:
    """Sign a checkpoint as a note: text, blank line, one line for each signer."""
    text = checkpoint.text()
    lines = [_line(signer.verifier, signer.sign(text)) for signer in signers]
    return f"{text}\n{''.join(lines)}"


def open_checkpoint(note: str, trusted: Sequence[VerifierKey], *, exact: bool = False) -> Checkpoint:
    """Open a signed note as a checkpoint that **every** trusted key signed.

    Lines of unknown keys are ignored, as C2SP asks, unless `exact` (a note of our own, which has no others).

    Raises:
      IntegrityError: the note is malformed, a line of a trusted key does not verify, one is missing or doubled, or
        the origin is not the name of the trusted keys.
    """
    text, lines = _split(note)
    if not trusted:
        raise IntegrityError("no trusted key was given for a tree head")
    known = {(key.name, key.key_id): key for key in trusted}
    seen = set()
    for name, raw in lines:
        key = known.get((name, raw[:4]))
        if key is None:
            if exact:
                raise IntegrityError("a tree head has a signature of an unknown key")
            continue
        if key in seen or not key.accepts(text, raw[4:]):
            raise IntegrityError(f"the {ALGORITHMS[key.algorithm]} signature of a tree head does not verify")
        seen.add(key)
    if len(seen) != len(known):
        raise IntegrityError("a tree head lacks the signature of a trusted key")
    checkpoint = Checkpoint.parse(text)
    if any(key.name != checkpoint.origin for key in trusted):
        raise IntegrityError("a tree head is of another log")
    return checkpoint


def unverified_size(note: str) -> int:
    """Read the size that a note claims to be a tree head of. Raises `IntegrityError` when it is malformed."""
    return Checkpoint.parse(_split(note)[0]).size


def valid_name(name: str) -> bool:
    """Tell whether `name` can be an origin and a key name: printable, no space, no plus sign, at most 255 bytes."""
    return bool(name) and name.isprintable() and not set(" +") & set(name) and len(name.encode()) <= 255


def may_be_new(name: str) -> bool:
    """Tell whether a log that is made now can have `name`: a valid one without characters that are not seen."""
    return valid_name(name) and not is_unruly(name)


def encode64(data: bytes) -> str:
    """Encode as standard base64."""
    return base64.b64encode(data).decode()


def decode64(text: str) -> bytes:
    """Decode standard base64; `IntegrityError` when it is not the one canonical encoding of the bytes."""
    try:
        data = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise IntegrityError("base64 is malformed") from None
    if encode64(data) != text:
        raise IntegrityError("base64 is not canonical")
    return data


def decimal(text: str) -> bool:
    """Tell whether `text` is a plain decimal number without leading zeroes, small enough for 63 bits."""
    return text.isascii() and text.isdigit() and len(text) <= 18 and (text == "0" or text[0] != "0")


def _opaque(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= 255:
        raise IntegrityError("the name of a log is too long")
    return bytes([len(data)]) + data


def _line(key: VerifierKey, signature: bytes) -> str:
    return f"— {key.name} {encode64(key.key_id + signature)}\n"


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    text, blank, rest = note.rpartition("\n\n")
    if len(note) > _MAX_NOTE or not blank or _CONTROLS.search(note) or not rest.endswith("\n"):
        raise IntegrityError("a signed note is malformed")
    lines = rest[:-1].split("\n")
    if len(lines) > _MAX_LINES:
        raise IntegrityError("a signed note has too many signatures")
    return text + "\n", [parse_signature(line) for line in lines]


def parse_signature(line: str) -> tuple[str, bytes]:
    """Parse key name and bytes (four of the key id, then the signature) of a line. Raises `IntegrityError`."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—" or not valid_name(parts[1]):
        raise IntegrityError("a signature line is malformed")
    raw = decode64(parts[2])
    if len(raw) < 5:
        raise IntegrityError("a signature line is malformed")
    return parts[1], raw
