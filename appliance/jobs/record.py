"""One record of private data: what ingest makes, what the store seals, and what a worker decrypts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

RecordKind = Literal["chat", "completion", "text"]


ROLES: dict[str, tuple[str, ...]] = {
    "chat": ("system", "user", "assistant", "tool"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One validated training example, with the unit of privacy it belongs to.

    Attributes:
      unit: identifier of the unit of privacy inside its dataset; for unit kind "record" every record has its own.
      kind: "chat" (system, user and assistant parts), "completion" (one prompt, one completion) or "text".
      parts: (role, text) pairs in order.
      fields: (column, value) pairs that were kept beside the text, for the filters of a curriculum; never trained on.
    """

    unit: str
    kind: RecordKind
    parts: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return "Record(...)"

    def encode(self) -> bytes:
        """Write the bytes that are sealed: compact JSON. `decode(encode(r)) == r`."""
        content: dict[str, Any] = {"u": self.unit, "k": self.kind, "p": self.parts}
        return orjson.dumps(content | ({"f": self.fields} if self.fields else {}))

    @staticmethod
    def decode(data: bytes) -> Record:
        """Read what `encode` wrote. Raises `ValueError` (without the content) if `data` is something else."""
        try:
            raw = orjson.loads(data)
            parts = tuple((role, text) for role, text in raw["p"])
            fields = tuple((column, value) for column, value in raw.get("f", ()))
            return Record(unit=raw["u"], kind=raw["k"], parts=parts, fields=fields)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            raise ValueError("not an encoded record") from None
