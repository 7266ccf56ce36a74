"""The manifest of a sealed directory: every file of the payload, every ledger entry, and the digest that is signed.

Format: docs/spec/bundle.md. The SHA-256 of the manifest stands in the ledger entry that hands the directory out, so
whoever trusts the ledger's keys can trust every byte that the manifest lists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import rfc8785

from appliance.errors import UsageError
from appliance.events.event import Event
from appliance.events.release import BundleExported, ReportBuilt
from appliance.values import FileDigest

SCHEMA = "appliance.manifest/1"
NAME = "manifest.json"
LEDGER = "ledger"
Kind = Literal["bundle", "report"]
EVENT_OF: dict[Kind, type[Event]] = {"bundle": BundleExported, "report": ReportBuilt}

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(?<!\.)")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a sealed directory holds.

    Attributes:
      kind: what it is: "bundle" or "report".
      id: its own id.
      run_id: the run it is about.
      origin: the log that vouches for it.
      created: time of the newest entry it relies on, as in that leaf; no clock of its own.
      files: every file of the payload, sorted by path; neither the manifest nor what lies in `ledger/`.
      entries: indices of the ledger entries it relies on, without the entry that hands it out.
      earlier: sizes of earlier tree heads for which it carries a consistency proof.
    """

    kind: Kind
    id: str
    run_id: str
    origin: str
    created: str
    files: tuple[FileDigest, ...]
    entries: tuple[int, ...]
    earlier: tuple[int, ...]

    def encode(self) -> bytes:
        """Write canonical JSON (RFC 8785) and a newline."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.kind,
            "id": self.id,
            "run_id": self.run_id,
            "origin": self.origin,
            "created": self.created,
            "files": [file.model_dump() for file in self.files],
            "entries": list(self.entries),
            "earlier": list(self.earlier),
        }
        return rfc8785.dumps(document) + b"\n"

    def sha256(self) -> str:
        """Digest `encode`, in hex: what the ledger entry states."""
        return hashlib.sha256(self.encode()).hexdigest()


def check_paths(paths: Iterable[str]) -> None:
    """Raise `UsageError` for a payload path that some file system would take for another one, or that is ours."""
    seen: set[str] = set()
    for path in paths:
        parts = path.split("/")
        odd = any(not _PART.fullmatch(part) or _RESERVED.fullmatch(part) for part in parts)
        if odd or len(path) > 200 or parts[0].lower() == LEDGER or path.lower() == NAME or path.lower() in seen:
            raise UsageError("a file name that cannot stand in a bundle", where=ascii(path))
        seen.add(path.lower())
