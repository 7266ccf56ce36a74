"""`report build`: what the ledger says of a run, in any state, as a sealed directory."""

from __future__ import annotations

from pathlib import Path

from appliance.flows import standing
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.release.sealing import Contents, Sealed, seal_directory
from appliance.flows.release.told import citable
from appliance.report.documents import cited, documents
from appliance.report.evidence import SignedHead

DOCUMENTS = ("report.html", "report.json", "privacy_statement.json", "wording.txt")


def build(home: Home, run_id: str, out: Path, operator: Operator) -> Sealed:
    """Write the report of a run to `out` and record it.

    Raises:
      ArtefactMissing: there is no such run.
      UsageError: `out` exists already.
    """
    with Desk.open(home, operator) as desk:
        find_run(desk.ledger, run_id)
        standing.state(desk, run_id)
        return write(desk, run_id, out)


def write(desk: Desk, run_id: str, out: Path) -> Sealed:
    """Build at an open desk: the report is about the tree head that is signed now."""
    ledger = desk.ledger
    head = ledger.sign()
    origin = ledger.entry(0).leaf["origin"]
    signed = SignedHead(origin=origin, size=head.size, root=head.root.hex(), note=head.note)
    events = citable(ledger)
    written = documents(run_id, events, signed)
    reserved = next(e for e in events if e.type == "run.reserved" and e.facts["run_id"] == run_id)
    contents = Contents(
        kind="report",
        id=new_id("report"),
        run_id=run_id,
        documents={name: written[name] for name in DOCUMENTS},
        entries=cited(run_id, events, signed),
        facts={"tree_size": head.size, "root": head.root.hex()},
        tree_sizes=(head.size,),
        policy_sha256=reserved.policy_sha256,
    )
    return seal_directory(desk, out, contents)
