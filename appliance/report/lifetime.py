"""What a run cost its datasets: the lifetime budgets, at its reservation and as of the report's tree head."""

from __future__ import annotations

from decimal import Decimal

from appliance.events.logged import LoggedEvent
from appliance.report import charts
from appliance.report.blocks import Block, Chart, Paragraph, Section, Table, pairs, say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Sentence, fact, items, leaf_field, states

WHAT_IT_COSTS = {
    "run.settled": "run, finished",
    "run.failed": "run, failed",
    "run.aborted": "run, aborted",
    "evaluation.settled": "evaluation, finished",
    "evaluation.failed": "evaluation, failed",
}


def budget_section(evidence: Evidence) -> Section:
    """Say what the datasets have spent of their lifetime budgets: that of training, that of the evaluation."""
    blocks = _budget(evidence, evidence.reserved, evidence.ending, "run")
    evaluation, ended = evidence.evaluation
    if evaluation is not None:
        blocks += _budget(evidence, evaluation, ended, "evaluation")
    return Section("budget", "Lifetime budgets", (*blocks, Paragraph(words(_COMPOSED))))


_COMPOSED = (
    "A lifetime budget composes every run and evaluation on a dataset, and on datasets that share units with it, "
    "failed and tuning ones included. Composition is tighter than a sum, so the rows do not add up."
)
_RULE = (
    ". What was fixed before the first output is composed by privacy loss distributions; what could be chosen after it "
    "has to pass a Renyi filter. The reading that decides here: "
)


def _budget(evidence: Evidence, reserved: LoggedEvent, ending: LoggedEvent | None, what: str) -> list[Block]:
    before, after, cap = (fact(reserved, f"/{name}") for name in ("epsilon_before", "epsilon_after", "cap"))
    charged = fact(ending, "/epsilon_charged") if ending else None
    rows: list[tuple[str, Sentence]] = [
        (f"Before this {what}, settled and reserved", say(before)),
        ("After its reservation (the worst case)", say(after)),
        ("Cap of the policy", say(cap)),
        (f"Charged to this {what} alone, at its own delta", say(charged) if charged else words("not settled")),
    ]
    role = {"run": "The data of training: dataset ", "evaluation": "The held-out data of the evaluation: dataset "}
    within = Decimal(reserved.facts["epsilon_after"]) <= Decimal(reserved.facts["cap"])
    said = (
        ". The reservation kept within the cap." if within else ". The reservation went BEYOND the cap of the policy."
    )
    drawing = charts.gauge(f"gauge-{what}", before, after, cap, charged, what)
    return [
        Paragraph(say(role[what], fact(reserved, "/dataset_id"), said)),
        *_counted(reserved),
        Chart("Lifetime epsilon against the cap of the policy", drawing),
        pairs("Lifetime epsilon, and what was charged", rows, ("When", "Epsilon")),
        *_others(evidence, reserved.facts["dataset_id"]),
        *_standing(evidence, reserved.facts["dataset_id"]),
    ]


def _standing(evidence: Evidence, dataset: str) -> list[Block]:
    """Say how the budget stands as of the report's tree head, and what was exported of the run before."""
    stated = next((e for e in evidence.all("budget.stated") if e.facts["dataset_id"] == dataset), None)
    if stated is None:
        return []
    rows: list[tuple[str, Sentence]] = [
        ("Settled, and every evaluation", _bound(stated, "/epsilon_spent")),
        ("With every open reservation", _bound(stated, "/epsilon_reserved")),
        ("Cap of the policy in force", say(fact(stated, "/cap"))),
        ("Delta", say(fact(stated, "/lifetime_delta"))),
        ("The reading that decides", say(fact(stated, "/counted_by"))),
        ("Stated in entry", say(leaf_field(stated, "/index"))),
    ]
    return [
        pairs("Lifetime epsilon as of the tree head of this report", rows, ("What", "Value")),
        *_rows(stated, "/open", "Open reservations on these data", ("Run", "Dataset", "Epsilon"), _OPEN),
        *_rows(stated, "/exports", "Exports of this run before", ("Bundle", "Recipient", "Entry"), _EXPORTED),
    ]


_OPEN, _EXPORTED = ("run_id", "dataset_id", "epsilon"), ("bundle_id", "recipient", "entry")


def _bound(stated: LoggedEvent, pointer: str) -> Sentence:
    return say(fact(stated, pointer)) if states(stated, pointer) else words("nothing bounds it: it is closed")


def _rows(
    stated: LoggedEvent, pointer: str, caption: str, head: tuple[str, ...], names: tuple[str, ...]
) -> list[Block]:
    """Show a list of the entry as a table, or say that it is empty."""
    rows = [[f"{row.pointer}/{name}" for name in names] for _, row in items(stated, pointer)]
    if not rows:
        return [Paragraph(words(f"{caption}: none."))]
    cells = (tuple(say(fact(stated, at)) if states(stated, at) else words("not named") for at in row) for row in rows)
    return [Table(caption, head, tuple(cells))]


def _counted(reserved: LoggedEvent) -> list[Paragraph]:
    """Say at which delta the lifetime is counted, and by which rule: since reservations state it."""
    if not states(reserved, "/lifetime_delta"):
        return []
    by = fact(reserved, "/counted_by")
    return [Paragraph(say("Lifetime epsilon is at delta ", fact(reserved, "/lifetime_delta"), _RULE, by, "."))]


def _others(evidence: Evidence, dataset: str) -> list[Table]:
    rows = tuple(
        (
            say(fact(event, "/evaluation_id" if "evaluation_id" in event.facts else "/run_id")),
            words(WHAT_IT_COSTS[event.type]),
            say(fact(event, "/epsilon_charged")),
            say(fact(event, "/delta")),
            say(leaf_field(event, "/index")),
        )
        for event in evidence.others
        if event.facts["dataset_id"] == dataset
    )
    head = ("Id", "State", "Epsilon charged", "Delta", "Entry")
    return [Table("Other work charged to the same dataset", head, rows)] if rows else []
