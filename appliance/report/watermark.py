"""The mark in the released adapter: what was committed before training, embedded, and predicted to survive."""

from __future__ import annotations

from decimal import Decimal

from appliance.events.logged import LoggedEvent
from appliance.report.blocks import NOT_PERFORMED, Paragraph, Section, Table, pairs, say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, Key, Sentence, fact, items, leaf_field

CHANGES = {
    "none": ": as released",
    "bf": ": merged, rounded to this format",
    "int": ": merged, quantised to this format",
    "nf": ": merged, quantised to this format",
    "prune": ": merged, that many per cent of the weights set to zero",
}
"""Known changes in the predicted envelope, by the letters of their key; the digits of a key say the rest."""


def watermark_section(evidence: Evidence) -> Section:
    """Describe the mark: what was committed before training, what was embedded, what it should survive."""
    event = evidence.last("watermark.embedded")
    if event is None:
        return Section("watermark", "Watermark", (Paragraph(NOT_PERFORMED), *_order(evidence)))
    rows: list[tuple[str, Sentence]] = [
        ("Score of the released adapter", say(fact(event, "/score"))),
        ("Bound on the chance of such a score without the key", say("at most ", fact(event, "/p_bound"))),
        ("Strength", say(fact(event, "/strength"))),
        ("Modules marked", say(fact(event, "/modules"))),
        ("Key", say(fact(event, "/key_id"))),
        ("Commitment to the key", say(fact(event, "/commitment"))),
        ("SHA-256 of the released adapter", say(fact(event, "/released_sha256"))),
        ("SHA-256 of the escrow", say(fact(event, "/escrow_sha256"))),
        ("SHA-256 of the algorithm", say(fact(event, "/algorithm_sha256"))),
        ("SHA-256 of the certificate", say(fact(event, "/certificate_sha256"))),
    ]
    meaning = Paragraph(
        words(
            "The mark was put in after training, with a key that is independent of the data and of the noise. It is "
            "post-processing, so epsilon and delta stay what they are. The bound on chance needs no assumption about "
            "the weights. It holds for whoever does not have the key."
        )
    )
    tests = [_detected(event) for event in evidence.events if event.type == "watermark.detected"]
    return Section(
        "watermark",
        "Watermark",
        (meaning, pairs("The watermark of the released adapter", rows), *_envelope(event), *_order(evidence), *tests),
    )


def _detected(event: LoggedEvent) -> Table:
    rows: list[tuple[str, Sentence]] = [
        ("Mark found", say(fact(event, "/detected"))),
        ("Score", say(fact(event, "/score"))),
        ("Bound on chance", say("at most ", fact(event, "/p_bound"))),
        ("Keys tested", say(fact(event, "/keys_tested"))),
        ("Entry", say(leaf_field(event, "/index"))),
    ]
    return pairs("A later detection on the released adapter", rows)


def _envelope(event: LoggedEvent) -> list[Table]:
    predicted = event.facts["score_predicted"]
    if not isinstance(predicted, dict):
        row = (words("unchanged"), say(fact(event, "/score_predicted")))
        return [Table("Score that the closed form predicts", ("After", "Predicted score"), (row,))]
    rows = tuple(
        (
            say(Key(event.index, figure.pointer), CHANGES.get(name.rstrip("0123456789_g"), "")),
            say(figure),
            _lasts(figure),
        )
        for name, figure in items(event, "/score_predicted")
    )
    caption = "Score that the closed form predicts after a change of the released weights; no attack was run here"
    return [Table(caption, ("After", "Predicted score", "Would be recognised"), rows)]


def _lasts(predicted: Figure) -> Sentence:
    return words("yes" if claimed(Decimal(str(predicted))) else "NO")


def claimed(score: Decimal) -> bool:
    """Tell whether a mark is claimed at this score: chance gives it with at most 2 exp(-score^2 / 2) < 2^-128."""
    return 2 * (-score * score / 2).exp() < Decimal(2) ** -128


def _order(evidence: Evidence) -> list[Table]:
    """List commitment, start of training and embedding with their places in the log."""
    steps = [
        ("The key was committed to", evidence.first("watermark.committed")),
        ("Training started", evidence.first("run.started")),
        ("Training was settled", evidence.settled),
        ("The mark was embedded", evidence.last("watermark.embedded")),
    ]
    if steps[0][1] is None and steps[3][1] is None:
        return []
    rows = tuple(
        (words(what), say(leaf_field(event, "/index")), say(leaf_field(event, "/time")))
        if event
        else (words(what), NOT_PERFORMED, NOT_PERFORMED)
        for what, event in steps
    )
    return [Table("Order in the ledger: the commitment has to come before training", ("Step", "Entry", "Time"), rows)]
