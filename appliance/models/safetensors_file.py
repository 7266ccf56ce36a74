"""Reading the header of a safetensors file as a stranger's file: every statement in it is checked.

Layout: 8 bytes little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the
tensors without gaps. Source: https://github.com/huggingface/safetensors (format section of its README).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from appliance.errors import DataInvalid
from appliance.models.foreign_json import parse_object

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference reader
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as its header states it: element type, shape, and byte range [begin, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the tensors of a safetensors file, after checking that the header and the file agree exactly.

    Raises:
      DataInvalid: the file is truncated, its header is not a header, or tensors overlap, leave gaps, have a size that
        does not follow from dtype and shape, or reach past the end of the file.
    """
    where = path.name
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise DataInvalid("not a safetensors file: shorter than its length field", where=where)
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise DataInvalid(f"the header claims {length} bytes, more than there are or may be", where=where)
        fields = parse_object(stream.read(length), where)
    fields.pop("__metadata__", None)
    tensors = {name: _tensor(name, field, where) for name, field in fields.items()}
    _check_layout(tensors, size - 8 - length, where)
    return tensors


def data_start(stream: BinaryIO) -> int:
    """Find where the tensors of an open file begin, behind its header."""
    stream.seek(0)
    (length,) = struct.unpack("<Q", stream.read(8))
    return 8 + int(length)


def _tensor(name: str, field: Any, where: str) -> StoredTensor:
    wrong = DataInvalid(f"tensor {name!r} is not described by a dtype, a shape and two offsets", where=where)
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise DataInvalid(f"tensor {name!r} has an unknown dtype", where=where)
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise wrong
    # `type` and not `isinstance`: true and false are integers to Python.
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, *offsets)):
        raise wrong
    return StoredTensor(dtype, tuple(shape), offsets[0], offsets[1])


def _check_layout(tensors: dict[str, StoredTensor], data_bytes: int, where: str) -> None:
    reached = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != reached:
            kind = "overlaps the tensor before it" if tensor.begin < reached else "leaves a gap before it"
            raise DataInvalid(f"tensor {name!r} {kind}", where=where)
        if (tensor.end - tensor.begin) * 8 != prod(tensor.shape) * BITS[tensor.dtype]:
            raise DataInvalid(f"tensor {name!r} has a size that does not follow from its dtype and shape", where=where)
        reached = tensor.end
        if reached > data_bytes:
            raise DataInvalid(f"truncated: tensor {name!r} ends after the file", where=where)
    if reached != data_bytes:
        raise DataInvalid(f"{data_bytes - reached} bytes belong to no tensor", where=where)
