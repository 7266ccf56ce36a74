"""What `ledger verify` says: as a document, as lines, and as the error of a ledger that does not pass."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from appliance.cli import render
from appliance.errors import IntegrityError, Stale
from appliance.flows.verify import Verified
from appliance.ledger.verify import Verification


def document(done: Verified, *, pinned: bool) -> dict[str, Any]:
    """Say it for --json."""
    found = done.verification
    return {
        "verdict": "tampered" if found.problems else "intact",
        "entries": found.entries,
        "root": found.root,
        "signed_size": found.signed_size,
        "witnessed_size": found.witnessed_size,
        "cosigned": [{"size": c.size, "witness": c.witness, "time": c.time} for c in found.cosigned],
        "alterable_from": found.alterable_from,
        "first_bad": found.first_bad,
        "problems": list(found.problems),
        "fork": list(found.fork),
        "bodies": found.bodies,
        "anchor_external": done.anchor_external,
        "fingerprint": done.fingerprint,
        "fingerprint_pinned": pinned,
        "key_sets": [{"since": since, "fingerprint": printed} for since, printed in done.key_sets],
    }


def lines(done: Verified, *, pinned: bool) -> list[str]:
    """Say it for people."""
    return _problems(done.verification) if done.verification.problems else _intact(done, pinned=pinned)


def _problems(found: Verification) -> list[str]:
    said = [f"problem: {problem}" for problem in found.problems]
    if found.fork:
        said += ["two histories were signed with the log's keys; these notes prove it to anybody:", ""]
        said += [line for note in found.fork for line in render.document_lines(note)]
    return said


def _intact(done: Verified, *, pinned: bool) -> list[str]:
    found = done.verification
    said = [
        f"{found.entries} entries intact; root {found.root}",
        f"signed up to {found.signed_size}; bodies: " + ", ".join(f"{n} {v}" for v, n in sorted(found.bodies.items())),
        *(f"witnessed up to {c.size} by {c.witness} at {time_text(c.time)}" for c in found.cosigned),
        *(f"keys handed over by entry {since - 1}; before it: {printed}" for (since, _), printed in _handed_over(done)),
        f"keys: {done.fingerprint}",
        done.exposure,
    ]
    return said if pinned else [*said, "compare the keys with the fingerprint on paper, or give it with --fingerprint"]


def require(found: Verification, *, witnessed: bool) -> None:
    """Raise unless nothing is wrong and, if asked, a witness saw every entry."""
    if found.problems:
        first = "" if found.first_bad is None else f"; the first bad entry is {found.first_bad}"
        raise IntegrityError(f"the ledger was altered{first}", hint="keep a copy as it is, and restore from a backup")
    if witnessed and found.witnessed_size < found.entries:
        unseen = f"entries {found.witnessed_size} to {found.entries - 1} were not witnessed"
        raise Stale(unseen, hint="appliance ledger witness export")


def _handed_over(done: Verified) -> list[tuple[tuple[int, str], str]]:
    """List each set of keys but the first, with the fingerprint of the one before it."""
    return list(zip(done.key_sets[1:], [printed for _, printed in done.key_sets], strict=False))


def time_text(seconds: int) -> str:
    """Write POSIX seconds as RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
