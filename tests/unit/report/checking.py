"""The stand-alone verifier's check of documents, on documents and entries that no ledger was made for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from appliance.events.logged import LoggedEvent
from appliance.export import verify
from tests.unit.report.story import RUN, Story


def check(directory: Path, story: Story, written: dict[str, bytes], kind: str = "report") -> verify.Examination:
    """What the verifier says of documents: its earlier checks are taken for done, with the entries of the story."""
    seen = verify.Examination(str(directory), ["pinned"], {})
    for name, data in written.items():
        (directory / name).write_bytes(data)
        seen.sizes[name] = len(data)
        seen.files[name] = {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seen.manifest = {"run_id": RUN, "kind": kind}
    seen.leaves = {event.index: leaf(event) for event in story.events}
    seen.head = verify.Head(f"{story.head.origin}\n{story.head.size}\n{'A' * 43}=\n\n", "head")
    seen.heads = {story.head.size: story.head.root}
    try:
        seen.check_documents()
    except verify.Bad as bad:
        seen.wrong(*bad.args)
    return seen


def leaf(event: LoggedEvent) -> dict[str, object]:
    """An entry as a leaf, as far as documents are concerned."""
    names = ("index", "type", "time", "subject", "policy_sha256", "software", "facts")
    return {name: getattr(event, name) for name in names}
