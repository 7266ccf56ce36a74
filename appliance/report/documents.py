"""The documents about one run. A function of its arguments: the same entries and tree head give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.errors import UsageError
from appliance.events.logged import LoggedEvent
from appliance.report import card, page, statement, wording
from appliance.report.compose import compose
from appliance.report.evidence import SignedHead, gather

LANGUAGES = ("en",)


def documents(
    run_id: str, events: Iterable[LoggedEvent], head: SignedHead, *, language: str = "en"
) -> dict[str, bytes]:
    """Write the documents about a run, by file name.

    Args:
      run_id: the run.
      events: entries of the ledger; those that do not concern the run, or that `head` does not cover, are left out.
      head: the signed tree head that covers them.
      language: "en".

    Returns:
      `report.html`, `report.json`, `privacy_statement.json` and `wording.txt`, the list of all that they may say; and
      `README.md`, the model card, if there is an adapter to describe.

    Raises:
      ArtefactMissing: no entry reserves the run.
      UsageError: there is no report in this language.
      ApplianceError: the list lacks a line.
    """
    if language not in LANGUAGES:
        raise UsageError(f"no report in {language}", hint=f"languages: {', '.join(LANGUAGES)}")
    evidence = gather(run_id, events, head)
    report = compose(evidence)
    wording.check(wording.lines(page.skeleton(report, evidence, language)))
    written = {
        "report.html": page.html(report, evidence, language),
        "report.json": page.twin(report, evidence, language),
        "privacy_statement.json": statement.privacy_statement(evidence),
        wording.WORDING: wording.packaged(wording.WORDING).encode(),
    }
    if evidence.settled is not None:
        written["README.md"] = card.model_card(evidence)
    return written


def cited(run_id: str, events: Iterable[LoggedEvent], head: SignedHead) -> list[int]:
    """Find the entries that the documents about a run rest on; a directory of them holds their proofs."""
    evidence = gather(run_id, events, head)
    return sorted({event.index for event in (*evidence.events, *evidence.others)})
