"""Reading sealed objects: random access to single records, and the scrub that needs no key."""

from __future__ import annotations

import errno
import os
import stat
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import TracebackType

from blake3 import blake3 as new_blake3
from cryptography.exceptions import InvalidTag

from appliance.errors import ArtefactMissing, IntegrityError, KeyUnavailable
from appliance.store.layout import (
    CHUNK,
    DIGEST,
    SEALED_CHUNK,
    SEALED_FOOTER,
    TAG,
    TAIL,
    Header,
    Stream,
    Trailer,
    chunk_bytes,
    chunk_count,
    lengths_of,
)
from appliance.store.wrapping import wipe

_CACHED_CHUNKS = 8
_HASH_BYTES = 1 << 20


class _File:
    """A sealed object as bytes on disk: header, trailer and footer read, nothing decrypted yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = _open_regular(path)
        try:
            self.bytes = os.fstat(self.fd).st_size
            with self.named():
                self._parse()
        except BaseException:
            self.close()
            raise

    def _parse(self) -> None:
        """Read from the end, whose length is fixed, and believe the header only when the trailer's digest fits."""
        tail = os.pread(self.fd, TAIL, max(0, self.bytes - TAIL))
        if len(tail) != TAIL:
            raise IntegrityError("trailer: the object was truncated")
        stream_bytes, self.header_bytes = lengths_of(tail, self.bytes)
        self.chunks = chunk_count(stream_bytes)
        at = self.header_bytes + stream_bytes + TAG * self.chunks
        self.trailer = Trailer(os.pread(self.fd, DIGEST * (self.chunks + 1), at), stream_bytes)
        self.footer = tail[-SEALED_FOOTER:]
        if self.trailer.digest != tail[-SEALED_FOOTER - DIGEST : -SEALED_FOOTER]:
            raise IntegrityError("trailer: truncated, extended or altered")
        header = os.pread(self.fd, self.header_bytes, 0)
        if self.trailer.part(0) != new_blake3(header).digest():
            raise IntegrityError("header: altered")
        self.header = Header.decode(header)

    def read_chunk(self, index: int, buffer: memoryview) -> memoryview:
        """Read sealed chunk `index` into `buffer`; returns the part that it takes."""
        view = buffer[: chunk_bytes(self.trailer.stream_bytes, index) + TAG]
        if os.preadv(self.fd, [view], self.header_bytes + index * SEALED_CHUNK) != len(view):
            raise IntegrityError(f"chunk {index}: truncated", where=str(self.path))
        return view

    def digest(self) -> str:
        """Digest the whole file by BLAKE3, hex."""
        return _digest(self.fd)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Add the path to an `IntegrityError` raised in the block."""
        try:
            yield
        except IntegrityError as error:
            error.where = error.where or str(self.path)
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SealedRecords:
    """The records of a sealed object, opened: `len(records)`, `records[i]`, iteration, a context manager.

    Reading a record reads and authenticates the chunks it lies in, and keeps the last few in memory. One reader is
    for one thread; after `close` (or the `with` block) it reads no more.
    """

    def __init__(self, file: _File, stream: Stream) -> None:
        self._file = file
        self._stream: Stream | None = stream
        self._sealed = memoryview(bytearray(SEALED_CHUNK))
        self._cache: OrderedDict[int, bytearray] = OrderedDict()
        self._starts = self._read_index()

    def _read_index(self) -> array[int]:
        """Read the offsets of all records in the stream, one more than there are records."""
        file = self._file
        with file.named():
            try:
                data_bytes, records = self._key().open_footer(file.chunks, file.trailer.digest, file.footer)
            except InvalidTag:
                raise IntegrityError("footer: altered, or from another object") from None
            if data_bytes + 4 * records != file.trailer.stream_bytes:
                raise IntegrityError("footer: does not fit the length of the object")
            lengths = array("I", self._read(data_bytes, 4 * records))
            if sys.byteorder == "big":
                lengths.byteswap()
            starts = array("Q", accumulate(lengths, initial=0))
            if starts[-1] != data_bytes:
                raise IntegrityError("index: does not fit the length of the object")
        return starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> bytes:
        """Record `index`, counted from 0. Raises `IndexError`, or `IntegrityError` naming a chunk that was altered."""
        if not 0 <= index < len(self._starts) - 1:
            raise IndexError("no such record")
        start = self._starts[index]
        return self._read(start, self._starts[index + 1] - start)

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def _read(self, start: int, size: int) -> bytes:
        first, skip = divmod(start, CHUNK)
        if size == 0:
            return b""
        if skip + size <= CHUNK:
            return bytes(memoryview(self._chunk(first))[skip : skip + size])
        out = bytearray()
        while len(out) < size:
            out += memoryview(self._chunk(first))[skip : skip + size - len(out)]
            first, skip = first + 1, 0
        return bytes(out)

    def _chunk(self, index: int) -> bytearray:
        cached = self._cache.get(index)
        if cached is not None:
            self._cache.move_to_end(index)
            return cached
        sealed = self._file.read_chunk(index, self._sealed)
        # The buffer of the oldest chunk is used again: nothing outside this class ever holds a view of it.
        plain = self._cache.popitem(last=False)[1] if len(self._cache) == _CACHED_CHUNKS else bytearray(CHUNK)
        try:
            self._key().open_chunk(index, sealed, memoryview(plain)[: len(sealed) - TAG])
        except InvalidTag:
            wipe(plain)
            raise IntegrityError(f"chunk {index}: altered, or from another place", where=str(self._file.path)) from None
        self._cache[index] = plain
        return plain

    def _key(self) -> Stream:
        if self._stream is None:
            raise KeyUnavailable("the object was closed", where=str(self._file.path))
        return self._stream

    def close(self) -> None:
        """Close the file, zero the chunks in memory and let go of the key."""
        self._file.close()
        for plain in self._cache.values():
            wipe(plain)
        self._cache.clear()
        self._starts = array("Q", [0])
        self._stream = None

    def __enter__(self) -> SealedRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SealedRecords({str(self._file.path)!r})"


def open_records(path: Path, data_key: bytes | bytearray, object_id: str, blake3: str | None = None) -> SealedRecords:
    """Open a sealed object: authenticates header, trailer, footer and index, and thereby the length.

    Args:
      path: the object.
      data_key: 32 bytes.
      object_id: what it was sealed as.
      blake3: the digest that was recorded when it was sealed. If given, the whole file is hashed first, which is what
        tells an older object with the same id and key from the right one.

    Raises:
      ArtefactMissing: there is no such file.
      IntegrityError: wrong key, wrong id, wrong digest, or any alteration; chunks are checked when they are read.
    """
    file = _File(path)
    try:
        with file.named():
            if file.header.object_id != object_id:
                raise IntegrityError("header: this is another object than the one asked for")
            stream = Stream.of(file.header, data_key)
            if blake3 is not None and file.digest() != blake3:
                raise IntegrityError("the object is not the one that was recorded")
            return SealedRecords(file, stream)
    except BaseException:
        file.close()
        raise


def open_bytes(path: Path, data_key: bytes | bytearray, object_id: str, blake3: str | None = None) -> bytes:
    """Open what `seal_bytes` sealed. Raises as `open_records` does, also if the object has not exactly one record."""
    with open_records(path, data_key, object_id, blake3) as records:
        if len(records) != 1:
            raise IntegrityError("the object does not hold exactly one byte string", where=str(path))
        return records[0]


def scrub(path: Path, blake3: str) -> None:
    """Check a sealed object against its recorded digest, without any key.

    Raises:
      ArtefactMissing: there is no such file.
      IntegrityError: it differs; the message begins with the first part that does: `header`, `chunk <i>`, `trailer`
        or `footer`. The trailer is not secret, so against an attacker only the digest counts, not the name.
    """
    fd = _open_regular(path)
    try:
        if _digest(fd) == blake3:
            return
    finally:
        os.close(fd)
    raise _diagnosis(path)


def _diagnosis(path: Path) -> IntegrityError:
    try:
        file = _File(path)
    except IntegrityError as error:
        return error
    try:
        buffer = memoryview(bytearray(SEALED_CHUNK))
        for index in range(file.chunks):
            if new_blake3(file.read_chunk(index, buffer)).digest() != file.trailer.part(index + 1):
                return IntegrityError(f"chunk {index}: altered", where=str(path))
    finally:
        file.close()
    return IntegrityError("footer: altered, or the whole object is another one than was recorded", where=str(path))


def _open_regular(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactMissing("the sealed object is not here", where=str(path)) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise IntegrityError("a link lies where a sealed object should be", where=str(path)) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IntegrityError("not a regular file", where=str(path))
    return fd


def _digest(fd: int) -> str:
    hasher, buffer, offset = new_blake3(), memoryview(bytearray(_HASH_BYTES)), 0
    while (count := os.preadv(fd, [buffer], offset)) > 0:
        hasher.update(buffer[:count])
        offset += count
    return str(hasher.hexdigest())
