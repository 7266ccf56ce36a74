"""The report of one run, put together from its sections."""

from __future__ import annotations

from appliance.report import guarantee, lifetime, results, watermark
from appliance.report.blocks import NOT_PERFORMED, Block, Listing, Paragraph, Report, Section, Table, pairs, say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Sentence, fact, leaf_field
from appliance.report.verdict import findings, headline

NEVER_RUN = (
    ("Canary audit of the finished adapter (membership inference, extraction)", ""),
    ("Robustness of the watermark against real attacks", ""),
    ("Quantisation of the adapter or of a merged model, and its cost", ""),
    ("Task accuracy, code benchmarks, attention analysis", ""),
    ("Serving, failover and latency", ""),
    ("Comparison of costs", ""),
)
BY_EVENT = (
    ("Self-test of the training engine", "audit.selftest"),
    ("Training to its end", "run.settled"),
    ("Watermark", "watermark.embedded"),
    ("Utility on private data", "evaluation.settled"),
    ("Detection of the watermark on the released adapter", "watermark.detected"),
)
NOT_SHOWN = (
    "That the appliance ran what it says it ran: its entries are its own word, signed so that it cannot change "
    "them later.",
    "That nothing can be inferred about the data. The guarantee is a bound on how much, for one unit; for "
    "several units "
    "that belong together it is weaker, in proportion to their number.",
    "Facts about the world that the data state together: a model is meant to learn what many units have in common.",
    "Privacy of what the base model had learnt before: its own training data have no guarantee here.",
    "Other releases: whoever loads the adapter and measures it on the private data makes a release that nothing "
    "here counts.",
    "That the number of units that the data owner declared is right; the guarantee relies on it within a factor "
    "of two.",
    "The entry about how the dataset was sealed. It says more about the data than the guarantee covers.",
    "That what the adapter writes is true, safe or fair.",
    "That this ledger is the newest: keep its tree heads where nobody who runs the appliance can write.",
)


def compose(evidence: Evidence) -> Report:
    """Compose the whole report. Raises `ArtefactMissing` when no entry reserves the run."""
    found = findings(evidence)
    tone, sentence = headline(evidence, found)
    sections = (
        guarantee.guarantee_section(evidence),
        guarantee.spending_section(evidence),
        lifetime.budget_section(evidence),
        results.selftest_section(evidence),
        watermark.watermark_section(evidence),
        results.utility_section(evidence),
        results.isolation_section(evidence),
        performed_section(evidence),
        Section("limits", "What this report does not show", (Listing(tuple(words(text) for text in NOT_SHOWN)),)),
        proof_section(evidence),
    )
    return Report(sentence, tone, found, sections)


def performed_section(evidence: Evidence) -> Section:
    """Say what was done and what was not, so that silence is never taken for success."""
    rows: list[tuple[str, Sentence]] = []
    for what, type_ in BY_EVENT:
        event = evidence.last(type_)
        rows.append((what, say("entry ", leaf_field(event, "/index")) if event else NOT_PERFORMED))
    rows += [(what, NOT_PERFORMED) for what, _ in NEVER_RUN]
    return Section(
        "performed",
        "What was performed and what was not",
        (pairs("Steps of this run", rows, ("Step", "Where it is recorded")),),
    )


def proof_section(evidence: Evidence) -> Section:
    """List the entries and the tree head, and say how to check them."""
    head = evidence.head
    covered: list[tuple[str, Sentence]] = [
        ("Log", say(head.figure("origin"))),
        ("Entries covered", say(head.figure("size"))),
        ("Root hash", say(head.figure("root"))),
    ]
    how: Block = Listing(
        (
            words(
                "Every value on this page that came from a run names its entry and its place there: hold the "
                "pointer over "
                "it, or read the attributes data-entry and data-fact, or the list of figures in report.json. The "
                "words around values are those of wording.txt; the verifier takes no others."
            ),
            words(
                "Copy this directory to another machine and run: python3 -I verify.py . --trusted-key KEYS. KEYS are "
                "the verifier keys of the log, or their fingerprint, which you got on another way than with this "
                "directory."
            ),
            words(
                "The verifier is one file of plain Python, made to be read. It recomputes every leaf hash and "
                "inclusion "
                "proof (RFC 6962) up to the signed root, and compares every figure with its entry and every line with "
                "the list."
            ),
        )
    )
    software = leaf_field(evidence.reserved, "/software/version")
    return Section(
        "proof",
        "Proof: the ledger behind this report",
        (
            Paragraph(say("The run is ", fact(evidence.reserved, "/run_id"), ", reserved by version ", software, ".")),
            pairs("Signed tree head that covers every entry below", covered),
            how,
            _entries(evidence),
        ),
    )


def _entries(evidence: Evidence) -> Table:
    cited = sorted((*evidence.events, *evidence.others), key=lambda event: event.index)
    rows = tuple(
        (
            say(leaf_field(event, "/index")),
            say(leaf_field(event, "/time")),
            say(leaf_field(event, "/type")),
            say(leaf_field(event, "/subject")) if event.subject else words("-"),
        )
        for event in cited
    )
    return Table("Entries that this report rests on", ("Entry", "Time (UTC)", "Type", "About"), rows)
