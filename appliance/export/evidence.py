"""The `ledger/` part of a sealed directory, written from values: keys, tree head, leaves with proofs, earlier heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.export.manifest import LEDGER


@dataclass(frozen=True, slots=True)
class ProvenLeaf:
    """A leaf's stored bytes and the proof (tlog-proof text) that a tree head covers it."""

    leaf: bytes
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What ties a directory to the ledger.

    Attributes:
      keys: C2SP verifier keys of the log, in the order of its fingerprint.
      head: the signed tree head that every proof leads to.
      leaves: by index.
      consistency: by size of the earlier tree, the text of its consistency proof.
    """

    keys: Iterable[str]
    head: str
    leaves: Mapping[int, ProvenLeaf]
    consistency: Mapping[int, str]


def write(directory: Path, evidence: Evidence) -> None:
    """Write `ledger/` below `directory`."""
    ledger = directory / LEDGER
    (ledger / "consistency").mkdir(parents=True)
    (ledger / "keys.txt").write_bytes("".join(f"{key}\n" for key in evidence.keys).encode())
    (ledger / "head.txt").write_bytes(evidence.head.encode())
    for index, proven in evidence.leaves.items():
        (ledger / f"{index:08d}.leaf").write_bytes(proven.leaf)
        (ledger / f"{index:08d}.proof").write_bytes(proven.proof.encode())
    for size, text in evidence.consistency.items():
        (ledger / "consistency" / f"{size}.txt").write_bytes(text.encode())
