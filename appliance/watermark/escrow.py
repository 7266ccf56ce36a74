"""The escrow: the references of all modules as one safetensors document, known by its SHA-256.

The ledger commits to that digest before the marked adapter is released. Whoever could choose the reference after
seeing the key could give any model any score, so a reference with another digest is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import rfc8785
from safetensors import SafetensorError
from safetensors.torch import load, save

from appliance.errors import IntegrityError
from appliance.watermark.reference import Reference

SCHEMA = "appliance.watermark-escrow/1"
_PARTS = ("u", "s", "v", "p")


def write(references: Iterable[Reference], model_sha256: str, role: str) -> bytes:
    """Write the canonical bytes: for each module the tensors `MODULE/u`, `/s`, `/v` (float32) and `/p` (float16)."""
    tensors = {f"{one.module}/{part}": getattr(one, part).contiguous() for one in references for part in _PARTS}
    # One entry only: the order of several is not fixed by the library that writes them.
    header = rfc8785.dumps({"schema": SCHEMA, "model_sha256": model_sha256, "role": role}).decode()
    data: bytes = save(tensors, metadata={"escrow": header})
    return data


def digest(data: bytes) -> str:
    """Digest an escrow by SHA-256."""
    return hashlib.sha256(data).hexdigest()


def read(data: bytes, committed_sha256: str) -> tuple[Reference, ...]:
    """Read the references of an escrow.

    Args:
      data: the bytes that `write` made.
      committed_sha256: the digest to which the ledger committed.

    Raises:
      IntegrityError: the reference is not the committed one.
    """
    if digest(data) != committed_sha256:
        hint = "a reference chosen after the key was known proves nothing"
        raise IntegrityError("the reference is not the one the ledger committed to", hint=hint)
    try:
        tensors = load(data)
        names = sorted({name.rsplit("/", 1)[0] for name in tensors})
        return tuple(Reference(name, *(tensors[f"{name}/{part}"] for part in _PARTS)) for name in names)
    except (SafetensorError, KeyError):
        raise IntegrityError("the reference is damaged") from None
