"""Which entries of the ledger are told in a bundle or a report, as the rooms that do not see the ledger know them."""

from __future__ import annotations

from appliance.events.catalog import types
from appliance.events.event import Told
from appliance.events.logged import LoggedEvent
from appliance.ledger.entries import Entry
from appliance.ledger.reading import LedgerReader
from appliance.report.evidence import concerning


def run_events(ledger: LedgerReader, run_id: str) -> tuple[LoggedEvent, ...]:
    """Choose what a bundle tells of a run, oldest first: the log's first entry, and what is told in a bundle.

    The entry about its data is left out: how the data were ingested is nobody's business outside.

    Raises:
      ArtefactMissing: there is no such run.
    """
    own = [event for event in concerning(run_id, citable(ledger)) if event.type in types(Told.BUNDLE)]
    return (to_logged(ledger.entry(0)), *own)


def citable(ledger: LedgerReader) -> list[LoggedEvent]:
    """Read every entry of a kind that a report may cite, oldest first; which of them it does is its own choice."""
    entries = [entry for type_ in types(Told.REPORT) for entry in ledger.entries(type_)]
    return [to_logged(entry) for entry in sorted(entries, key=lambda entry: entry.index)]


def to_logged(entry: Entry) -> LoggedEvent:
    """Show an entry as the report and export rooms see it."""
    leaf = entry.leaf
    return LoggedEvent(
        index=entry.index,
        type=leaf["type"],
        time=leaf["time"],
        subject=leaf["subject"],
        policy_sha256=leaf["policy_sha256"],
        software=leaf["software"],
        facts=leaf["facts"],
    )
