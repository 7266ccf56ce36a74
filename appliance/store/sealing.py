"""Writing sealed objects: a stream of records in, one file that appears only when it is whole out."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from appliance.errors import DataInvalid, WillNotFit
from appliance.files import staged, write_all
from appliance.store.layout import CHUNK, MAX_CHUNKS, MAX_RECORD, SALT, SEALED_CHUNK, TAG, Stream, Trailer

_BATCH = 16  # chunks encrypted before they are hashed and written together


@dataclass(frozen=True, slots=True)
class Sealed:
    """What is public about a sealed object.

    Attributes:
      blake3: BLAKE3 of the whole file, hex; `b3sum` gives the same.
      bytes: length of the file.
      chunks: number of 64 KiB chunks; counts bytes, not records.
    """

    blake3: str
    bytes: int
    chunks: int


def seal_records(
    records: Iterable[bytes | memoryview], path: Path, data_key: bytes | bytearray, object_id: str
) -> Sealed:
    """Seal records to `path`, replacing what was there, with a fresh salt.

    Plaintext never touches the disk: what a crash leaves is a hidden `.partial` file of ciphertext (see
    `files.sweep`). Memory is bounded by about 3 MiB, plus 4 bytes a record and 32 bytes a chunk.

    Args:
      records: any number of byte strings, each below 4 GiB, taken one by one.
      path: where the object goes; its directory must exist.
      data_key: 32 bytes.
      object_id: what the object is, 1 to 255 bytes of UTF-8; readable without a key.

    Raises:
      WillNotFit: the disk is full; nothing is left behind.
      DataInvalid: a record of 4 GiB or more.
      UsageError: an unusable object id or key.
    """
    return _seal_records(records, path, data_key, object_id, os.urandom(SALT))


def _seal_records(
    records: Iterable[bytes | memoryview], path: Path, data_key: bytes | bytearray, object_id: str, salt: bytes
) -> Sealed:
    """Seal with a given salt: only for test vectors, because a salt seals once."""
    stream = Stream(data_key, salt, object_id)
    with staged(path) as fd:
        writer = _Writer(fd, stream)
        for record in records:
            writer.add(record)
        return writer.finish()


def seal_bytes(data: bytes | bytearray | memoryview, path: Path, data_key: bytes | bytearray, object_id: str) -> Sealed:
    """Seal one byte string, such as a training checkpoint, as an object of one record. Raises as `seal_records`."""
    return seal_records((memoryview(data).cast("B"),), path, data_key, object_id)


class _Writer:
    """Encrypts what it is given chunk by chunk into a file."""

    def __init__(self, fd: int, stream: Stream) -> None:
        self._fd, self._stream = fd, stream
        self._pending = bytearray()
        self._out = memoryview(bytearray(_BATCH * SEALED_CHUNK))
        self._lengths = array("I")
        self._data_bytes = 0
        self._chunks = 0
        self._digests = bytearray()
        self._whole = blake3()
        self._written = 0
        header = stream.header.encode()
        self._digests += blake3(header).digest()
        self._write(header)

    def add(self, record: bytes | memoryview) -> None:
        if len(record) > MAX_RECORD:
            raise DataInvalid("a record has 4 GiB or more")
        self._lengths.append(len(record))
        self._data_bytes += len(record)
        self._feed(record)

    def finish(self) -> Sealed:
        if sys.byteorder == "big":
            self._lengths.byteswap()
        records, stream_bytes = len(self._lengths), self._data_bytes + 4 * len(self._lengths)
        self._feed(memoryview(self._lengths).cast("B"))
        self._drain(len(self._pending))
        trailer = Trailer(bytes(self._digests), stream_bytes)
        self._write(trailer.encode())
        self._write(self._stream.seal_footer(self._chunks, trailer.digest, self._data_bytes, records))
        return Sealed(self._whole.hexdigest(), self._written, self._chunks)

    def _feed(self, data: bytes | memoryview) -> None:
        if len(data) <= _BATCH * CHUNK:  # the usual case, without a view
            self._pending += data
        else:
            view = memoryview(data)
            for start in range(0, len(view), _BATCH * CHUNK):
                self._feed(view[start : start + _BATCH * CHUNK])
        if len(self._pending) >= _BATCH * CHUNK:
            self._drain(len(self._pending) // CHUNK * CHUNK)

    def _drain(self, size: int) -> None:
        """Seal the first `size` pending bytes: whole chunks, or at the very end what there is."""
        with memoryview(self._pending) as pending:
            for start in range(0, size, _BATCH * CHUNK):
                self._seal_batch(pending[start : min(start + _BATCH * CHUNK, size)])
        del self._pending[:size]

    def _seal_batch(self, data: memoryview) -> None:
        filled = 0
        with data:
            for start in range(0, len(data), CHUNK):
                if self._chunks >= MAX_CHUNKS:
                    raise WillNotFit("an object holds at most 2^32 - 1 chunks")
                size = min(CHUNK, len(data) - start)
                out = self._out[filled : filled + size + TAG]
                self._stream.seal_chunk(self._chunks, data[start : start + size], out)
                self._digests += blake3(out).digest()
                self._chunks += 1
                filled += len(out)
        self._write(self._out[:filled])

    def _write(self, data: bytes | memoryview) -> None:
        self._whole.update(data)
        self._written += len(data)
        write_all(self._fd, data)
