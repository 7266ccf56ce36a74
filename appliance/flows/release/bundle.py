"""`export`: bundle, verify. What leaves the building is the marked adapter of a finished run, with its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.errors import (
    ArtefactMissing,
    GateFailed,
    IntegrityError,
    PolicyDenied,
    UsageError,
)
from appliance.events.logged import LoggedEvent
from appliance.events.release import ExportRefused
from appliance.events.states import RunState
from appliance.export import verify as verifier
from appliance.flows import standing
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.release.sealing import Contents, Sealed, seal_directory
from appliance.flows.release.told import run_events
from appliance.flows.run.listing import state_of
from appliance.jobs.rundir import CERTIFICATE
from appliance.ledger.reading import LedgerReader
from appliance.names import require_line
from appliance.report.documents import documents
from appliance.report.evidence import SignedHead
from appliance.store.trees import tree_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What may leave of a run: its entries, the marked adapter, the digest that the ledger records of it."""

    run_id: str
    policy_sha256: str
    events: tuple[LoggedEvent, ...]
    adapter: Path
    released_sha256: str
    certificate: bytes


def bundle(home: Home, run_id: str, out: Path, recipient: str, operator: Operator) -> Sealed:
    """Write the bundle of a finished run to `out` and record it.

    Args:
      home: the home.
      run_id: the run.
      out: the directory to make; it must not exist.
      recipient: for whom it is; stands in the ledger in clear, so a pseudonym or an organisation. May be empty.
      operator: who exports.

    Raises:
      PolicyDenied: the run is not finished or its adapter is not marked.
      GateFailed: no self-test of the engine was passed before it.
      IntegrityError: the released files are not the ones that the ledger records.
      UsageError: `out` exists already, or the recipient is not one line.
    """
    if recipient:
        require_line(recipient, "a recipient")
    with Desk.open(home, operator) as desk:
        with desk.refusals(ExportRefused, PolicyDenied, GateFailed, IntegrityError):
            release = releasable(desk.ledger, home, run_id)
        standing.state(desk, run_id)
        release = replace(release, events=run_events(desk.ledger, run_id))
        head = desk.ledger.sign()
        signed = SignedHead(origin=home.config.origin, size=head.size, root=head.root.hex(), note=head.note)
        written = documents(run_id, release.events, signed)
        contents = Contents(
            kind="bundle",
            id=new_id("bundle"),
            run_id=run_id,
            documents={**written, CERTIFICATE: release.certificate},
            entries=[event.index for event in release.events],
            facts={"recipient": recipient or None, "released_sha256": release.released_sha256},
            copies={"adapter": (release.adapter, release.released_sha256)},
            tree_sizes=(head.size,),
            policy_sha256=release.policy_sha256,
        )
        return seal_directory(desk, out, contents)


def preview(home: Home, run_id: str, out: Path) -> Release:
    """Find what `bundle` would release; nothing is written. Raises as it does."""
    if out.exists():
        raise UsageError("the directory exists already and is not replaced", where=str(out))
    with home.reader() as ledger:
        return releasable(ledger, home, run_id)


def verify(directory: Path, trusted_key: Sequence[str], state: Path | None) -> verifier.Examination:
    """Check a sealed directory with the very code that lies in it as `verify.py`.

    Raises:
      UsageError: the key or the state file cannot be used.
      ArtefactMissing: there is no such directory.
    """
    if not directory.is_dir():
        raise ArtefactMissing("there is no such directory", where=str(directory))
    try:
        return verifier.verify(str(directory), trusted_key, str(state) if state else "")
    except verifier.CannotRun as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise ArtefactMissing("cannot be read", where=str(error.filename)) from None


def releasable(ledger: LedgerReader, home: Home, run_id: str) -> Release:
    """Require all that must hold before anything leaves. A policy may ask for more than a mark, never for less.

    Raises as `bundle` does.
    """
    run = find_run(ledger, run_id)
    if run.state != RunState.FINISHED:
        raise PolicyDenied(f"run {run_id} is {state_of(home, run)}: only a finished run can be exported")
    events = run_events(ledger, run_id)
    facts = _state_mark(run_id, events)
    _require_selftest(run_id, events)
    run_dir = home.run(run_id)
    try:
        digest, _ = tree_digest(run_dir.released)
        certificate = run_dir.certificate.read_bytes()
    except (ArtefactMissing, FileNotFoundError):
        hint = f"make them again with `appliance watermark embed {run_id}`"
        raise PolicyDenied(f"the marked adapter of run {run_id} is not here", hint=hint) from None
    if digest != facts["released_sha256"]:
        raise IntegrityError("the marked adapter is not the one the ledger records", where=str(run_dir.released))
    return Release(
        run_id=run_id,
        policy_sha256=run.policy_sha256,
        events=events,
        adapter=run_dir.released,
        released_sha256=digest,
        certificate=certificate,
    )


def _state_mark(run_id: str, events: Sequence[LoggedEvent]) -> dict[str, Any]:
    """State the facts of the mark, which the ledger committed to before training; an unmarked adapter never leaves."""
    embedded = next((event for event in reversed(events) if event.type == "watermark.embedded"), None)
    if embedded is None:
        hint = f"mark it with `appliance watermark embed {run_id}`"
        raise PolicyDenied(f"the adapter of run {run_id} carries no watermark", hint=hint)
    committed = next((event.index for event in events if event.type == "watermark.committed"), embedded.index)
    if any(committed > event.index for event in events if event.type == "run.started"):
        raise PolicyDenied(f"the ledger committed to no watermark key before run {run_id} was trained")
    return embedded.facts


def _require_selftest(run_id: str, events: Sequence[LoggedEvent]) -> None:
    started = next(event.index for event in events if event.type == "run.started")
    if not any(e.type == "audit.selftest" and e.facts["passed"] is True and e.index < started for e in events):
        hint = "train anew: the engine is tested before the data are opened"
        raise GateFailed(f"the ledger holds no passed self-test of the engine before run {run_id}", hint=hint)
