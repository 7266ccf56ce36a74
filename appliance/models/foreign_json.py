"""JSON of a model's publisher: parsed strictly, with a size limit, before any library sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from appliance.errors import DataInvalid

MAX_BYTES = 64 * 2**20


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse the JSON object in `data` (UTF-8).

    Raises:
      DataInvalid: not UTF-8, not JSON, not an object, a key twice, or nested beyond what can be parsed.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataInvalid("not a JSON object that can be read", where=where) from error
    if not isinstance(value, dict):
        raise DataInvalid("not a JSON object", where=where)
    return value


def read_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Read the JSON object in a file of at most `most` bytes; raises `DataInvalid` like `parse_object`."""
    if path.stat().st_size > most:
        raise DataInvalid(f"larger than {most} bytes", where=path.name)
    return parse_object(path.read_bytes(), path.name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key stands twice")
    return unique
