"""From the root key to everything else: key-encryption keys by epoch, data keys, fingerprint key, body key.

    root key -> (HKDF) wrapping key -> epoch key-encryption key (a file of its own) -> data key (a row in the database)
             -> (HKDF) fingerprint key, body private key

The key-encryption keys may lie on another device than the data: destroying that device makes every wrapped data key
useless, wherever copies of the database are.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field, ValidationError

from appliance.errors import ArtefactMissing, IntegrityError, KeyUnavailable
from appliance.files import make_directory, write_atomic
from appliance.store.wrapping import KEY_BYTES, unwrap, wipe, wrap
from appliance.values import Count, Value, to_json

StoreId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_FILE_LIMIT = 1 << 16
_EPOCH_FILE = re.compile(r"epoch-([1-9][0-9]{0,8})\.json")
_BODY_KEY_PREFIX = "appliance-body-key/1 "
V = TypeVar("V", bound=Value)


class RootKey:
    """The key of one store, held in a buffer that can be zeroed.

    Args:
      store_id: 32 hex digits; part of every context, so that keys of two stores never fit each other.
      secret: 32 bytes; the root key takes the buffer over.
    """

    __slots__ = ("_secret", "store_id")

    def __init__(self, store_id: str, secret: bytearray) -> None:
        self.store_id = store_id
        self._secret: bytearray | None = secret

    @property
    def buffer(self) -> bytearray:
        """The secret itself, to be locked in memory or wrapped. Raises `KeyUnavailable` after `wipe`."""
        if self._secret is None:
            raise KeyUnavailable("the store is sealed", hint="appliance key unlock")
        return self._secret

    def derive(self, label: str) -> bytearray:
        """Derive 32 bytes for one purpose: HKDF-SHA-256, salt = store id, info = `appliance/store/v1/<label>`."""
        derived = bytearray(KEY_BYTES)
        info = f"appliance/store/v1/{label}".encode()
        HKDF(hashes.SHA256(), KEY_BYTES, bytes.fromhex(self.store_id), info).derive_into(self.buffer, derived)
        return derived

    def wipe(self) -> None:
        """Zero the buffer; from now on the store is sealed. May be called again."""
        if self._secret is not None:
            wipe(self._secret)
            self._secret = None

    def __repr__(self) -> str:
        return f"RootKey(store_id={self.store_id!r})"


def read_canonical(path: Path, kind: type[V]) -> V:
    """Read a file that must be, byte for byte, what `to_json` writes for a `kind`.

    Raises:
      ArtefactMissing: there is no such file.
      IntegrityError: it is anything else than a canonical `kind`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT)
    except FileNotFoundError:
        raise ArtefactMissing("the key file is not here", where=str(path)) from None
    try:
        value = kind.model_validate_json(data)
    except ValidationError:
        raise IntegrityError("the key file is damaged", hint="restore it from a backup", where=str(path)) from None
    if to_json(value) != data:
        raise IntegrityError("the key file was altered", hint="restore it from a backup", where=str(path))
    return value


class EpochFile(Value):
    """The key-encryption key of one epoch, wrapped by the root key."""

    schema_: Literal["appliance.epoch-key/1"] = Field("appliance.epoch-key/1", alias="schema")
    store_id: StoreId
    epoch: Count
    wrapped: str


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The key-encryption keys of one store. Nothing is cached: a key file that is destroyed is gone at once.

    Attributes:
      root: the root key.
      directory: where the epoch files lie, possibly on a device of their own.
    """

    root: RootKey
    directory: Path

    @staticmethod
    def create(root: RootKey, directory: Path) -> KeyRing:
        """Draw the key-encryption key of epoch 1 and write it to `directory` (created 0700 if missing).

        Raises `UsageError` if there is one already.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        make_directory(directory)
        wrapping_key = root.derive("epoch-wrap")
        wrapped = wrap(wrapping_key, _epoch_context(root.store_id, 1), os.urandom(KEY_BYTES))
        wipe(wrapping_key)
        file = EpochFile(schema="appliance.epoch-key/1", store_id=root.store_id, epoch=1, wrapped=wrapped)
        write_atomic(directory / "epoch-1.json", to_json(file), replace=False)
        return KeyRing(root, directory)

    @property
    def epoch(self) -> int:
        """The newest epoch of which the key is here. Raises `KeyUnavailable` if there is none."""
        names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        epochs = [int(match[1]) for name in names if (match := _EPOCH_FILE.fullmatch(name))]
        if not epochs:
            raise _no_epoch_key(self.directory)
        return max(epochs)

    def new_data_key(self, dataset_id: str) -> tuple[bytes, str, int]:
        """Draw a data key for a dataset.

        Returns:
          The key (32 bytes), the key wrapped by the key-encryption key of the newest epoch (base64), that epoch.

        Raises:
          KeyUnavailable: the key-encryption key is not here, or the store is sealed.
          IntegrityError: its file is damaged.
        """
        epoch = self.epoch
        data_key = os.urandom(KEY_BYTES)
        kek = self._key_encryption_key(epoch)
        wrapped = wrap(kek, _data_context(self.root.store_id, dataset_id, epoch), data_key)
        wipe(kek)
        return data_key, wrapped, epoch

    def unwrap(self, wrapped: str, dataset_id: str, epoch: int) -> bytes:
        """Unwrap the data key that `new_data_key` wrapped.

        Raises:
          KeyUnavailable: the key-encryption key of that epoch is not here (shredded, or its device is not mounted).
          IntegrityError: the wrapped key was altered, or belongs to another dataset, epoch or store.
        """
        kek = self._key_encryption_key(epoch)
        data_key = unwrap(kek, _data_context(self.root.store_id, dataset_id, epoch), wrapped)
        wipe(kek)
        if data_key is None:
            raise IntegrityError(f"the wrapped key does not belong to dataset {dataset_id} in epoch {epoch}")
        return bytes(data_key)

    def _key_encryption_key(self, epoch: int) -> bytearray:
        path = self.directory / f"epoch-{epoch}.json"
        try:
            file = read_canonical(path, EpochFile)
        except ArtefactMissing:
            raise _no_epoch_key(path) from None
        wrapping_key = self.root.derive("epoch-wrap")
        kek = unwrap(wrapping_key, _epoch_context(self.root.store_id, epoch), file.wrapped)
        wipe(wrapping_key)
        if kek is None or (file.store_id, file.epoch) != (self.root.store_id, epoch):
            raise IntegrityError("the key-encryption key was altered or belongs to another store", where=str(path))
        return kek


def _epoch_context(store_id: str, epoch: int) -> list[str | int]:
    return ["appliance/epoch-key/v1", store_id, epoch]


def _data_context(store_id: str, dataset_id: str, epoch: int) -> list[str | int]:
    return ["appliance/data-key/v1", store_id, dataset_id, epoch]


def _no_epoch_key(path: Path) -> KeyUnavailable:
    hint = "mount the device that holds it; after a shred it is gone for good"
    return KeyUnavailable("the key-encryption key is not here", hint=hint, where=str(path))


def fingerprint_key(root: RootKey) -> bytes:
    """Derive the 32-byte key of fingerprints: the same for all datasets of a store, so that they compare."""
    return bytes(root.derive("fingerprint"))


def body_private_key(root: RootKey) -> bytes:
    """Derive the raw X25519 private key (32 bytes) that opens the sealed bodies of the ledger."""
    return bytes(root.derive("body-x25519"))


def body_public_key(root: RootKey) -> bytes:
    """Derive the raw X25519 public key (32 bytes) that belongs to `body_private_key`."""
    return X25519PrivateKey.from_private_bytes(body_private_key(root)).public_key().public_bytes_raw()


def write_body_public_key(root: RootKey, path: Path) -> None:
    """Publish the body public key, so that bodies can be sealed while the store is sealed."""
    write_atomic(path, f"{_BODY_KEY_PREFIX}{body_public_key(root).hex()}\n".encode(), mode=0o644)


def read_body_public_key(path: Path) -> bytes:
    """Read the body public key (32 bytes). Raises `ArtefactMissing`, or `IntegrityError` if the file is malformed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactMissing("the body key file is not here", where=str(path)) from None
    match = re.fullmatch(re.escape(_BODY_KEY_PREFIX.encode()) + rb"([0-9a-f]{64})\n", data)
    if match is None:
        raise IntegrityError("the body key file is damaged", where=str(path))
    return bytes.fromhex(match[1].decode())
