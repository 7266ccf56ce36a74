"""What was measured: the engine's self-test and the utility; and where it ran."""

from __future__ import annotations

from decimal import Decimal

from appliance.events.logged import LoggedEvent
from appliance.report import charts
from appliance.report.blocks import NOT_PERFORMED, Block, Chart, Paragraph, Section, Table, pairs, say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, Key, Sentence, fact, items, leaf_field, resolve, states

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def selftest_section(evidence: Evidence) -> Section:
    """List the checks of the engine before the run."""
    blocks = [block for event in evidence.all("audit.selftest") for block in _selftest(event)]
    return Section("selftest", "Self-test of the training engine", tuple(blocks) or (Paragraph(NOT_PERFORMED),))


def _selftest(event: LoggedEvent) -> list[Block]:
    rows = tuple(
        (
            say(fact(event, f"{check.pointer}/name")),
            words("passed" if check.value["passed"] is True else "FAILED"),
            say(fact(event, f"{check.pointer}/value")),
            say(fact(event, f"{check.pointer}/bound")),
            say(fact(event, f"{check.pointer}/count")),
        )
        for _, check in items(event, "/checks")
    )
    intro = (
        "The production code, with the configuration of the run, trained a scratch adapter on synthetic data and was "
        "watched where it releases. These checks test the mechanism; they are no attack on the adapter. What is "
        "seen must not exceed the bound, except in the checks of noise and sampling that state a probability (of noise "
        "or batches that look like this or worse if all is well): that must not fall below the bound. Entry "
    )
    table = Table("Checks of the self-test", ("Check", "Result", "Seen", "Bound", "Trials"), rows)
    digest = pairs("The self-test as it is recorded", [("SHA-256 of its result", say(fact(event, "/result_sha256")))])
    return [Paragraph(say(intro, leaf_field(event, "/index"), ".")), table, digest]


# --- utility --------------------------------------------------------------------------------------------------------


def utility_section(evidence: Evidence) -> Section:
    """Say what the adapter is good for, measured under differential privacy, and what it did to public text."""
    event = evidence.last("evaluation.settled")
    if event is None:
        failed = evidence.last("evaluation.failed")
        return Section("utility", "Utility", (Paragraph(_unevaluated(failed)), *_earlier(evidence, failed)))
    rows = _comparisons(event)
    blocks: list[Block] = [
        Paragraph(
            say(
                "Gain of the adapter over the base model on held-out private data: by how much the loss falls, in nat "
                "per token. The figures are noised; they cost epsilon ",
                *(fact(event, "/epsilon_charged"), " at delta ", fact(event, "/delta"), ", charged to dataset "),
                *(fact(event, "/dataset_id"), ". Each interval covers the true value with 95 % confidence."),
            )
        )
    ]
    if rows:
        title = "Gain over the base model on private data, with confidence intervals"
        blocks += [Chart(title, charts.forest("utility", title, rows, "nat per token; right is better"))]
        blocks += [_comparison_table(event)]
    return Section("utility", "Utility", (*blocks, *_public(event), *_earlier(evidence, event)))


def _earlier(evidence: Evidence, shown: LoggedEvent | None) -> list[Table]:
    """List other evaluations of the run, so that nobody shows the best of many without saying so."""
    others = [event for event in evidence.all("evaluation.settled", "evaluation.failed") if event is not shown]
    rows = tuple(
        (
            say(fact(event, "/evaluation_id")),
            words(event.type.removeprefix("evaluation.")),
            say(fact(event, "/epsilon_charged")),
            say(leaf_field(event, "/index")),
        )
        for event in others
    )
    head = ("Id", "State", "Epsilon charged", "Entry")
    return [Table("Other evaluations of this run, each charged; the newest one is shown", head, rows)] if rows else []


def _unevaluated(failed: LoggedEvent | None) -> Sentence:
    if failed is None:
        return say(*NOT_PERFORMED, ". Nothing is known about whether the adapter is of use.")
    return say(
        "An evaluation failed and released nothing. It was charged epsilon ",
        *(fact(failed, "/epsilon_charged"), " all the same (", fact(failed, "/reason"), ")."),
    )


def _comparisons(event: LoggedEvent) -> list[tuple[str, Figure, Figure, Figure]]:
    return [
        (
            letter,
            fact(event, f"{row.pointer}/gain_nat"),
            fact(event, f"{row.pointer}/low"),
            fact(event, f"{row.pointer}/high"),
        )
        for letter, (_, row) in zip(LETTERS, items(event, "/comparisons"), strict=False)
    ]


def _comparison_table(event: LoggedEvent) -> Table:
    rows = tuple(
        (words(letter), *(say(fact(event, f"{row.pointer}/{key}")) for key in ("name", "gain_nat", "low", "high")))
        for letter, (_, row) in zip(LETTERS, items(event, "/comparisons"), strict=False)
    )
    head = ("In the chart", "Comparison", "Gain, nat per token", "Interval from", "to")
    return Table("Gain over the base model on private data (95 % confidence intervals)", head, rows)


def _public(event: LoggedEvent) -> list[Block]:
    if not states(event, "/public/loss_base"):
        return [Paragraph(words("Loss on public text: not performed."))]
    names = {
        "loss_base": "Loss of the base model, nat per token",
        "loss_adapter": "Loss with the adapter before it was marked",
        "loss_marked": "Loss with the released adapter",
        "change_percent": "Change by the watermark, per cent of the loss",
        "low": "95 % confidence interval from",
        "high": "to",
        "tokens": "Predicted tokens",
        "text_sha256": "SHA-256 of the public text",
    }
    rows = [
        (label, say(fact(event, f"/public/{key}"))) for key, label in names.items() if states(event, f"/public/{key}")
    ]
    caption = "Loss on a public English text that comes with the software; it costs no privacy"
    return [pairs(caption, rows)]


# --- where it ran ---------------------------------------------------------------------------------------------------


def isolation_section(evidence: Evidence) -> Section:
    """Say what the sandbox of each worker reached, and which software ran."""
    ran = [event for event in evidence.events if states(event, "/isolation")]
    seen: dict[str, LoggedEvent] = {event.type: event for event in ran}
    rows = tuple(
        (
            say(leaf_field(event, "/type")),
            *(
                say(fact(event, f"/isolation/{key}")) if states(event, f"/isolation/{key}") else NOT_PERFORMED
                for key in KINDS
            ),
            say(leaf_field(event, "/index")),
        )
        for event in seen.values()
    )
    head = ("Job", "Network", "Files", "Core dumps", "Entry")
    blocks: list[Block] = [
        Paragraph(
            words(
                "Each job that saw private data or foreign files ran in a process of its own. This is what its sandbox "
                "reached, in the words of the entry."
            )
        )
    ]
    blocks += [Table("Isolation reached", head, rows)] if rows else [Paragraph(NOT_PERFORMED)]
    return Section("isolation", "Isolation and software", (*blocks, *_software(evidence)))


KINDS = ("network", "files", "core_dumps")


def _software(evidence: Evidence) -> list[Block]:
    event = evidence.settled or evidence.reserved
    rows: list[tuple[str, Sentence]] = [
        ("Version of the appliance", say(leaf_field(event, "/software/version"))),
        ("SHA-256 of its sources", say(leaf_field(event, "/software/sha256"))),
        ("SHA-256 of the job of the run", say(fact(evidence.reserved, "/spec_sha256"))),
        ("Base model", say(fact(evidence.reserved, "/model_id"))),
    ]
    model = evidence.last("model.imported")
    if model is not None:
        rows.append(("SHA-256 of the base model", say(fact(model, "/sha256"))))
        rows.append(("Architecture of the base model", say(fact(model, "/architecture"))))
        rows.append(("Parameters of the base model", say(fact(model, "/parameters"))))
        rows.append(("Licence of the base model", say(fact(model, "/licence"))))
    if evidence.settled is not None:
        rows.append(("SHA-256 of the adapter before it was marked", say(fact(evidence.settled, "/adapter_sha256"))))
    policy = evidence.last("policy.activated")
    if policy is not None:
        rows.append(("Policy", say(fact(policy, "/name"))))
        rows.append(("SHA-256 of the policy", say(fact(policy, "/sha256"))))
    return [pairs("Software, base model and policy", rows), *_libraries(event)]


def _libraries(event: LoggedEvent) -> list[Table]:
    if not states(event, "/libraries"):
        return []
    rows = tuple((say(Key(event.index, figure.pointer)), say(figure)) for _, figure in items(event, "/libraries"))
    return [Table("Libraries that trained", ("Library", "Version"), rows)]


def above_zero(event: LoggedEvent, row: Figure) -> bool | None:
    """Tell whether an interval lies above zero (true), below it (false), or contains it (None)."""
    low, high = (Decimal(resolve(event.facts, f"{row.pointer}/{key}")) for key in ("low", "high"))
    return True if low > 0 else False if high < 0 else None
