"""Reading the header of a GGUF file as a stranger's file: metadata and tensor table, with every bound checked.

Layout (little-endian): magic "GGUF", u32 version, u64 tensor count, u64 metadata count, the metadata
(string key, u32 type, value), the tensor table (name, u32 dimensions, u64 each, u32 type, u64 offset), padding to
`general.alignment`, the tensors. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES

from appliance.errors import DataInvalid

VERSIONS = (2, 3)
MAX_COUNT = 1 << 24  # of metadata entries, array elements or tensors; real vocabularies stay below 2^19
MAX_KEPT = 4096  # numbers of an array that are kept: one for each layer, not one for each token
MAX_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
BLOCKS = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}  # (values, bytes) of one block, by type


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
      metadata: scalar and string values by key; a short array of numbers is there as a tuple, any other as its length.
      tensors: (begin, end) byte range in the file of each tensor, by name.
      values: how many values each tensor has, by name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, int]]
    values: dict[str, int]


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, after checking that all it claims lies inside the file and nothing overlaps.

    Raises:
      DataInvalid: not a GGUF file, a version or byte order this does not read, truncated, or inconsistent.
    """
    if path.stat().st_size < 24:
        raise DataInvalid("not a GGUF file: shorter than its fixed header", where=path.name)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            return _Reader(view, path.name).header()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise DataInvalid(
                "truncated or damaged: the header runs past what it describes", where=path.name
            ) from error


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, view: mmap.mmap, where: str) -> None:
        self._view, self._where, self._at = view, where, 0

    def header(self) -> GgufHeader:
        if self._view[:4] != b"GGUF":
            raise DataInvalid("not a GGUF file: it does not begin with the letters GGUF", where=self._where)
        self._at = 4
        version = self._scalar("<I")
        if version not in VERSIONS:
            raise DataInvalid("a GGUF version or byte order that cannot be read (2 and 3 can)", where=self._where)
        tensor_count, metadata_count = self._count(), self._count()
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._string()
            if key in metadata:
                raise DataInvalid("a metadata key stands twice", where=self._where)
            metadata[key] = self._value(self._scalar("<I"))
        table = [self._tensor() for _ in range(tensor_count)]
        tensors = self._place(table, metadata.get("general.alignment", 32))
        return GgufHeader(metadata, tensors, {name: values for name, _, _, values in table})

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._view, self._at)
        self._at += struct.calcsize(code)
        return value

    def _count(self) -> int:
        count: int = self._scalar("<Q")
        if count > MAX_COUNT:
            raise DataInvalid(f"claims {count} entries, more than any real file has", where=self._where)
        return count

    def _string(self) -> str:
        length: int = self._scalar("<Q")
        if length > len(self._view) - self._at:
            raise DataInvalid("truncated: a string reaches past the end of the file", where=self._where)
        self._at += length
        return self._view[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind == ARRAY:
            return self._array()
        raise DataInvalid(f"metadata of unknown type {kind}", where=self._where)

    def _array(self) -> int | tuple[Any, ...]:
        kind, count = self._scalar("<I"), self._count()
        if kind == STRING:
            for _ in range(count):
                self._string()
        elif kind in SCALARS and count <= MAX_KEPT:
            return tuple(self._scalar(SCALARS[kind]) for _ in range(count))
        elif kind in SCALARS:
            self._at += count * struct.calcsize(SCALARS[kind])
        else:
            raise DataInvalid(f"metadata array of unknown type {kind}", where=self._where)
        return count

    def _place(self, table: list[tuple[str, int, int, int]], alignment: Any) -> dict[str, tuple[int, int]]:
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise DataInvalid("the alignment is not a positive multiple of 8", where=self._where)
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, tuple[int, int]] = {}
        reached = start
        for name, offset, size, _ in sorted(table, key=lambda row: row[1]):
            if name in tensors or offset % alignment or start + offset < reached:
                raise DataInvalid(f"tensor {name!r} stands twice, overlaps another or is misaligned", where=self._where)
            reached = start + offset + size
            if reached > len(self._view):
                raise DataInvalid(f"truncated: tensor {name!r} ends after the file", where=self._where)
            tensors[name] = (start + offset, reached)
        return tensors

    def _tensor(self) -> tuple[str, int, int, int]:
        name, dimensions = self._string(), self._scalar("<I")
        if dimensions > MAX_DIMENSIONS:
            raise DataInvalid(f"tensor {name!r} claims {dimensions} dimensions", where=self._where)
        shape = [self._scalar("<Q") for _ in range(dimensions)]
        kind, offset = self._scalar("<I"), self._scalar("<Q")
        return name, offset, self._size(name, shape, kind), prod(shape)

    def _size(self, name: str, shape: list[int], kind: int) -> int:
        """Count the bytes of a tensor: whole blocks of its type, along the first dimension."""
        if kind not in BLOCKS:
            raise DataInvalid(f"tensor {name!r} has unknown type {kind}", where=self._where)
        block, block_bytes = BLOCKS[kind]
        if not shape or shape[0] % block:
            raise DataInvalid(f"tensor {name!r} is not made of whole blocks", where=self._where)
        return int(prod(shape) // block * block_bytes)
