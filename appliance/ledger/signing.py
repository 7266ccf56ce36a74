"""The log's own signing keys: two 32-byte seeds in files that stay readable while the store is sealed.

`ed25519.seed` and `mldsa44.seed` are secret (0600); `verifier.keys` holds the two C2SP verifier keys, one a line. The
directory `next` has the same files for keys that are about to take over: once the log names them, whoever needs to
sign moves them up, so that a crash in between needs no repair.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from appliance.errors import ArtefactMissing, IntegrityError
from appliance.files import commit, disk_errors_explained, fsync_directory, locked, write_atomic
from appliance.ledger.note import ED25519, MLDSA44, Checkpoint, Signer, VerifierKey, cosigned_message

_ED25519_FILE = "ed25519.seed"
_MLDSA44_FILE = "mldsa44.seed"
_PUBLIC_FILE = "verifier.keys"
_NEXT = "next"


@dataclass(frozen=True, slots=True)
class Ed25519Signer:
    """Signs the text of a checkpoint."""

    verifier: VerifierKey
    _key: Ed25519PrivateKey = field(repr=False)

    def sign(self, text: str) -> bytes:
        """Sign the note text with 64 bytes."""
        return self._key.sign(text.encode())

    def sign_statement(self, message: bytes) -> bytes:
        """Sign a message that is no checkpoint with 64 bytes."""
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class MLDSA44Signer:
    """Signs the cosigned message of a checkpoint, with the time of signing."""

    verifier: VerifierKey
    _key: MLDSA44PrivateKey = field(repr=False)
    _clock: Callable[[], datetime]

    def sign(self, text: str) -> bytes:
        """Sign with 8 bytes of POSIX time, then the 2420-byte signature."""
        seconds = max(0, int(self._clock().timestamp()))
        message = cosigned_message(self.verifier.name, Checkpoint.parse(text), seconds)
        return seconds.to_bytes(8, "big") + self._key.sign(message)

    def sign_statement(self, message: bytes) -> bytes:
        """Sign a message that is no checkpoint with 2420 bytes."""
        return self._key.sign(message)


def create_keys(directory: Path, origin: str) -> None:
    """Generate what is missing in `directory` (mode 0700), so that an interrupted creation can be continued."""
    with disk_errors_explained(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (_ED25519_FILE, _MLDSA44_FILE):
        if not (directory / name).exists():
            write_atomic(directory / name, os.urandom(32))
    if not (directory / _PUBLIC_FILE).exists():
        keys = _derive(directory, origin)
        text = "".join(key.encode() + "\n" for key in (keys[0][0], keys[1][0]))
        write_atomic(directory / _PUBLIC_FILE, text.encode())


def load_verifiers(directory: Path) -> tuple[VerifierKey, ...]:
    """Load the public keys. Raises `ArtefactMissing` or `IntegrityError`."""
    path = directory / _PUBLIC_FILE
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ArtefactMissing("the ledger's verifier keys are missing", where=str(path)) from None
    except UnicodeDecodeError:
        raise IntegrityError("the ledger's verifier keys are damaged", where=str(path)) from None
    keys = tuple(VerifierKey.parse(line) for line in text.splitlines())
    if [key.algorithm for key in keys] != [ED25519, MLDSA44]:
        raise IntegrityError("the ledger's verifier keys are damaged", where=str(path))
    return keys


def create_next_keys(directory: Path, origin: str, clock: Callable[[], datetime]) -> tuple[Signer, ...]:
    """Make fresh keys in `next`; what is left there from a change of keys that never was is dropped."""
    with locked(directory):
        shutil.rmtree(directory / _NEXT, ignore_errors=True)
        create_keys(directory / _NEXT, origin)
        fsync_directory(directory)
        return load_signers(directory / _NEXT, clock)


def promote(directory: Path, keys: tuple[VerifierKey, ...]) -> bool:
    """Make these keys, which the log names as its newest, the ones in `directory`; the seeds before them are gone.

    Continues where a crash stopped it. Returns False when the keys are neither in `directory` nor in `next`.
    """
    with locked(directory):
        names = directory / _NEXT / _PUBLIC_FILE
        if not names.exists():
            with suppress(OSError):  # empty, where a crash came right before this
                (directory / _NEXT).rmdir()
            return load_verifiers(directory) == keys
        if load_verifiers(directory / _NEXT) != keys:
            return load_verifiers(directory) == keys
        for name in (_ED25519_FILE, _MLDSA44_FILE, _PUBLIC_FILE):  # the names last: they say that there is work left
            if (directory / _NEXT / name).exists():
                commit(directory / _NEXT / name, directory / name)
        with disk_errors_explained(directory):
            (directory / _NEXT).rmdir()
            fsync_directory(directory)
    return True


def load_signers(directory: Path, clock: Callable[[], datetime]) -> tuple[Signer, ...]:
    """Load the private keys. Raises `IntegrityError` when they do not belong to the verifier keys beside them."""
    verifiers = load_verifiers(directory)
    (public, ed25519), (public_pq, mldsa44) = _derive(directory, verifiers[0].name)
    if (public, public_pq) != verifiers:
        raise IntegrityError("a signing key of the ledger was replaced", where=str(directory))
    return Ed25519Signer(public, ed25519), MLDSA44Signer(public_pq, mldsa44, clock)


def _derive(
    directory: Path, origin: str
) -> tuple[tuple[VerifierKey, Ed25519PrivateKey], tuple[VerifierKey, MLDSA44PrivateKey]]:
    ed25519 = Ed25519PrivateKey.from_private_bytes(_seed(directory / _ED25519_FILE))
    mldsa44 = MLDSA44PrivateKey.from_seed_bytes(_seed(directory / _MLDSA44_FILE))
    return (
        (VerifierKey(origin, ED25519, ed25519.public_key().public_bytes_raw()), ed25519),
        (VerifierKey(origin, MLDSA44, mldsa44.public_key().public_bytes_raw()), mldsa44),
    )


def _seed(path: Path) -> bytes:
    try:
        seed = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactMissing("a signing key of the ledger is missing", where=str(path)) from None
    if len(seed) != 32:
        raise IntegrityError("a signing key of the ledger is damaged", where=str(path))
    return seed
