"""Sealed directories, bundle or report: payload, manifest, event, signature, proofs, and only then the final name.

The digest of the manifest is recorded and signed before anything stands under the final name. A crash in between
leaves an entry for a directory that never came to be, and never a directory that no entry vouches for.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, Busy, IntegrityError, UsageError
from appliance.events.event import Event
from appliance.export.bundle import VERIFIER, Assembly, verifier_source
from appliance.export.evidence import Evidence, ProvenLeaf
from appliance.export.manifest import EVENT_OF, Kind, Manifest
from appliance.files import staged_directory
from appliance.flows.desk import Desk
from appliance.ledger.heads import TreeHead
from appliance.ledger.reading import LedgerReader
from appliance.store.trees import tree_digest

EARLIER_HEADS = 1000
"""For so many of the newest earlier sealed directories a new one proves that it continues their tree head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What goes into a sealed directory.

    Attributes:
      kind: "bundle" or "report".
      id: its id, `bundle_...` or `report_...`.
      run_id: the run it is about.
      documents: payload files, path to bytes; `verify.py` is added.
      entries: indices of the ledger entries that the documents rely on.
      facts: the facts of its event besides its id, the run and the manifest's digest.
      copies: directories to copy into it: path below it, to (source, digest that the ledger records).
      tree_sizes: sizes of the signed tree heads that the documents name.
      policy_sha256: the policy in force.
    """

    kind: Kind
    id: str
    run_id: str
    documents: Mapping[str, bytes]
    entries: Collection[int]
    facts: Mapping[str, Any]
    copies: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    tree_sizes: Collection[int] = ()
    policy_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A sealed directory: where it is, the entry that vouches for it, and the tree head that covers the entry."""

    path: Path
    manifest: Manifest
    index: int
    head: TreeHead


def seal_directory(desk: Desk, out: Path, contents: Contents) -> Sealed:
    """Write a sealed directory to `out` and record it in the ledger.

    Raises:
      UsageError: `out` exists already, or a file name cannot stand in it; nothing was recorded.
      IntegrityError: a copied directory is not the one that the ledger records; nothing was recorded.
      WillNotFit: the disk is full.
    """
    with assembling(out) as assembly:
        assembly.add({**contents.documents, VERIFIER: verifier_source()})
        for prefix, (source, digest) in contents.copies.items():
            found, files = tree_digest(source)
            if found != digest:
                raise IntegrityError("the files are not the ones that the ledger records", where=str(source))
            assembly.copy(source, prefix, files)
        ledger = desk.ledger
        manifest = _manifest(ledger, assembly, contents)
        index = desk.record(_event(manifest, contents), contents.policy_sha256)
        head = ledger.head(covering=index)
        if head is None:
            raise ApplianceError(f"entry {index} was signed and no tree head covers it")
        if not {*_find_rekeyings(ledger, before=index)} <= {*manifest.entries}:
            raise Busy("the ledger's signing keys were changed meanwhile", hint="try again")
        assembly.seal(manifest, _evidence(ledger, manifest, index, head))
    return Sealed(path=out, manifest=manifest, index=index, head=head)


@contextmanager
def assembling(out: Path) -> Iterator[Assembly]:
    """Offer a directory under a temporary name, which becomes `out` when the block ends well and vanishes when not.

    Files get mode 0644, directories 0755, whatever the umask: the directory is there to be handed on.

    Raises:
      UsageError: `out` exists already.
      WillNotFit: the disk is full.
    """
    if out.exists() or out.is_symlink():
        raise UsageError("the directory exists already and is not replaced", where=str(out))
    with staged_directory(out) as made:
        yield Assembly(made)
        _make_readable(made)


def _make_readable(directory: Path) -> None:
    for parent, _, names in os.walk(directory):
        Path(parent).chmod(0o755)
        for name in names:
            Path(parent, name).chmod(0o644)


def _manifest(ledger: LedgerReader, assembly: Assembly, contents: Contents) -> Manifest:
    rekeyed = list(_find_rekeyings(ledger))
    entries = tuple(sorted({0, *rekeyed, *contents.entries}))
    leaves = [ledger.entry(index).leaf for index in entries]
    return Manifest(
        kind=contents.kind,
        id=contents.id,
        run_id=contents.run_id,
        origin=leaves[0]["origin"],
        created=max(leaf["time"] for leaf in leaves),
        files=assembly.files(),
        entries=entries,
        earlier=tuple(sorted({*_earlier_heads(ledger), *rekeyed, *contents.tree_sizes})),
    )


def _event(manifest: Manifest, contents: Contents) -> Event:
    """Say that the directory is handed out."""
    facts = {
        f"{manifest.kind}_id": manifest.id,
        "run_id": manifest.run_id,
        "manifest_sha256": manifest.sha256(),
        **contents.facts,
    }
    return EVENT_OF[manifest.kind].of(facts)


def _evidence(ledger: LedgerReader, manifest: Manifest, index: int, head: TreeHead) -> Evidence:
    return Evidence(
        keys=ledger.keys_at(head.size).texts,
        head=head.note,
        leaves={i: ProvenLeaf(ledger.leaf(i), ledger.prove(i, head)) for i in (*manifest.entries, index)},
        consistency={size: ledger.prove_consistency(size, head) for size in manifest.earlier},
    )


def _find_rekeyings(ledger: LedgerReader, before: int | None = None) -> Iterator[int]:
    """Find the entries that changed the signing keys: who pinned older keys follows them to the newest."""
    for keys in ledger.key_sets[1:]:
        if before is None or keys.since <= before:
            yield keys.since - 1


def _earlier_heads(ledger: LedgerReader) -> Iterator[int]:
    """List the sizes of the tree heads in the sealed directories before this one, the newest `EARLIER_HEADS`."""
    indices = [e.index for type_ in EVENT_OF.values() for e in ledger.entries(type_, newest_first=True)]
    for index in sorted(indices, reverse=True)[:EARLIER_HEADS]:
        head = ledger.head(covering=index)
        if head is not None:
            yield head.size
