"""`report build`: what the ledger says of a run, in any state, as a sealed directory."""

from __future__ import annotations

from pathlib import Path

from appliance.flows.home import Home, Operator, new_id
from appliance.flows.sealing import Contents, Sealed, logged, seal_directory
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.records import LoggedEvent
from appliance.report.documents import cited, documents
from appliance.report.evidence import WANTED, SignedHead

DOCUMENTS = ("report.html", "report.json", "privacy_statement.json", "wording.txt")


def build(home: Home, run_id: str, out: Path, operator: Operator) -> Sealed:
    """Write the report of a run to `out` and record it.

    Raises:
      ArtefactMissing: there is no such run.
      UsageError: `out` exists already.
    """
    with home.ledger() as ledger:
        return write(ledger, home.actor(operator), run_id, out, operator.reason)


def write(ledger: Ledger, actor: Actor, run_id: str, out: Path, reason: str = "") -> Sealed:
    """`build`, for an open ledger: the report is about the tree head that is signed now."""
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
    return seal_directory(ledger, actor, out, contents, reason=reason)


def citable(ledger: Ledger) -> list[LoggedEvent]:
    """Every entry of a kind that a report may cite; which of them concern a run is the report's own choice."""
    return [logged(entry) for type_ in WANTED for entry in ledger.entries(type_)]
