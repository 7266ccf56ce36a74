"""The layout of a sealed object, version 1, as pure functions. The specification is `docs/spec/store.md`.

    header | chunk 0 | ... | chunk n-1 | trailer | footer

All integers are little-endian. The plaintext stream is the records one after another, then the record index.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import IntegrityError, UsageError
from appliance.store.wrapping import KEY_BYTES, wipe

CHUNK = 1 << 16
TAG = 16
SEALED_CHUNK = CHUNK + TAG
DIGEST = 32
SALT = 32
MAX_CHUNKS = (1 << 32) - 1  # one counter value stays free for the footer
MAX_RECORD = (1 << 32) - 1

_FIXED = struct.Struct("<8sBBH32s")  # magic, algorithm, log2 of the chunk size, length of the object id, salt
_MAGIC = b"APLSEAL1"
_ALGORITHM = 1
_CHUNK_LOG2 = 16
MAX_OBJECT_ID = 255
MAX_HEADER = _FIXED.size + MAX_OBJECT_ID + DIGEST

_STREAM_BYTES = struct.Struct("<Q")
FOOTER = struct.Struct("<QQ")  # bytes of all records, number of records
SEALED_FOOTER = FOOTER.size + TAG
TAIL = _STREAM_BYTES.size + DIGEST + SEALED_FOOTER

_INFO = b"appliance/sealed/v1"


@dataclass(frozen=True, slots=True)
class Header:
    """What a sealed object begins with.

    Attributes:
      salt: 32 bytes, drawn afresh for every sealing.
      object_id: what the object is; whoever opens it must ask for the same id.
      commitment: 32 bytes that fit one key only (AES-GCM alone does not commit to its key).
    """

    salt: bytes
    object_id: str
    commitment: bytes

    def encode(self) -> bytes:
        """Write the header."""
        return _header_core(self.salt, self.object_id) + self.commitment

    @staticmethod
    def decode(data: bytes) -> Header:
        """Read a header from `data`. Raises `IntegrityError`."""
        if len(data) < _FIXED.size:
            raise IntegrityError("header: too short")
        magic, algorithm, chunk_log2, length, salt = _FIXED.unpack_from(data)
        if (magic, algorithm, chunk_log2) != (_MAGIC, _ALGORITHM, _CHUNK_LOG2):
            raise IntegrityError("header: not a sealed object of version 1")
        name, commitment = data[_FIXED.size : _FIXED.size + length], data[_FIXED.size + length :]
        if not 1 <= length <= MAX_OBJECT_ID or len(commitment) != DIGEST:
            raise IntegrityError("header: not as long as it says")
        try:
            return Header(salt, name.decode("utf-8"), commitment)
        except UnicodeDecodeError:
            raise IntegrityError("header: the object id is not UTF-8") from None


def _header_core(salt: bytes, object_id: str) -> bytes:
    try:
        name = object_id.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("an object id must be valid Unicode") from None
    if not 1 <= len(name) <= MAX_OBJECT_ID:
        raise UsageError(f"an object id has 1 to {MAX_OBJECT_ID} bytes")
    return _FIXED.pack(_MAGIC, _ALGORITHM, _CHUNK_LOG2, len(name), salt) + name


class Stream:
    """The keys of one object: seals and opens its chunks and its footer (STREAM construction over AES-256-GCM).

    Args:
      data_key: 32 bytes.
      salt: the salt of the header.
      object_id: the object id of the header.

    `header` is the header that belongs to this key. HKDF-SHA-256 gives file key (32 bytes), key commitment (32) and
    nonce prefix (7) from the data key, with the salt and the header up to the commitment.
    """

    __slots__ = ("_aead", "_digest", "_prefix", "header")

    def __init__(self, data_key: bytes | bytearray, salt: bytes, object_id: str) -> None:
        if len(data_key) != KEY_BYTES:
            raise UsageError(f"a data key has {KEY_BYTES} bytes")
        okm = bytearray(KEY_BYTES + DIGEST + 7)
        info = _INFO + _header_core(salt, object_id)
        HKDF(hashes.SHA256(), len(okm), salt, info).derive_into(data_key, okm)
        self.header = Header(salt, object_id, bytes(okm[KEY_BYTES : KEY_BYTES + DIGEST]))
        self._aead = AESGCM(okm[:KEY_BYTES])
        self._prefix = bytes(okm[KEY_BYTES + DIGEST :])
        self._digest = blake3(self.header.encode()).digest()
        wipe(okm)

    @staticmethod
    def of(header: Header, data_key: bytes | bytearray) -> Stream:
        """Make the stream that `header` announces. Raises `IntegrityError` if it was made with another `data_key`."""
        stream = Stream(data_key, header.salt, header.object_id)
        if not hmac.compare_digest(stream.header.commitment, header.commitment):
            raise IntegrityError("header: altered, or sealed with another key")
        return stream

    def seal_chunk(self, index: int, data: memoryview, out: memoryview) -> None:
        """Encrypt chunk `index` into `out`, which is 16 bytes longer than `data`."""
        self._aead.encrypt_into(self._nonce(index, last=False), data, self._digest + _STREAM_BYTES.pack(index), out)

    def open_chunk(self, index: int, data: memoryview, out: memoryview) -> None:
        """Decrypt chunk `index` into `out`. Raises `cryptography.exceptions.InvalidTag`."""
        self._aead.decrypt_into(self._nonce(index, last=False), data, self._digest + _STREAM_BYTES.pack(index), out)

    def seal_footer(self, chunks: int, trailer_digest: bytes, data_bytes: int, records: int) -> bytes:
        """Seal the last 32 bytes of the object, which authenticate the trailer and with it the length."""
        plain = FOOTER.pack(data_bytes, records)
        return self._aead.encrypt(self._nonce(chunks, last=True), plain, self._digest + trailer_digest)

    def open_footer(self, chunks: int, trailer_digest: bytes, footer: bytes) -> tuple[int, int]:
        """Open the footer: bytes of all records and number of records. Raises `cryptography.exceptions.InvalidTag`."""
        plain = self._aead.decrypt(self._nonce(chunks, last=True), footer, self._digest + trailer_digest)
        data_bytes, records = FOOTER.unpack(plain)
        return data_bytes, records

    def _nonce(self, counter: int, *, last: bool) -> bytes:
        return self._prefix + counter.to_bytes(4, "little") + (b"\x01" if last else b"\x00")


@dataclass(frozen=True, slots=True)
class Trailer:
    """What a keyless scrub needs: BLAKE3 of the header and of every sealed chunk, and the length of the stream.

    Attributes:
      digests: 32 bytes of the header, then 32 bytes of each chunk.
      stream_bytes: length of the plaintext stream; every chunk but the last is full.
    """

    digests: bytes
    stream_bytes: int

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the trailer, with which it ends and which the footer authenticates."""
        return blake3(self.digests + _STREAM_BYTES.pack(self.stream_bytes)).digest()

    def encode(self) -> bytes:
        """Write the trailer."""
        return self.digests + _STREAM_BYTES.pack(self.stream_bytes) + self.digest

    def part(self, number: int) -> bytes:
        """Digest of the header (0) or of chunk `number - 1`."""
        return self.digests[number * DIGEST : (number + 1) * DIGEST]


def chunk_count(stream_bytes: int) -> int:
    """Count the chunks a plaintext stream takes; an empty one takes none."""
    return -(-stream_bytes // CHUNK)


def chunk_bytes(stream_bytes: int, index: int) -> int:
    """Count the plaintext bytes of chunk `index`: 65536, or less in the last one."""
    return min(CHUNK, stream_bytes - index * CHUNK)


def lengths_of(tail: bytes, file_bytes: int) -> tuple[int, int]:
    """Find the lengths of plaintext stream and header, from the last `TAIL` bytes and the length of the file.

    Raises:
      IntegrityError: no header can be that long: the object was truncated, extended, or its trailer was altered.
    """
    (stream_bytes,) = _STREAM_BYTES.unpack_from(tail)
    chunks = chunk_count(stream_bytes)
    header_bytes = file_bytes - stream_bytes - chunks * (TAG + DIGEST) - DIGEST - TAIL
    if chunks > MAX_CHUNKS or not _FIXED.size + 1 + DIGEST <= header_bytes <= MAX_HEADER:
        raise IntegrityError("trailer: the object was truncated or extended, or its trailer was altered")
    return int(stream_bytes), header_bytes
