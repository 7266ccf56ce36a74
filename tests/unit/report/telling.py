"""Runs of every kind, so that everything that the documents can say is said once: what `wording.txt` has to list.

`python -m tests.unit.report.telling` writes the list anew and prints its SHA-256, which `appliance/export/verify.py`
has to know. Read the difference before you commit it: each new line is something that a report may say from now on.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from appliance.events.logged import LoggedEvent
from appliance.isolation.sandbox import LOOPBACK_ONLY, WIREGUARD_DECLARED
from appliance.report import card, page, statement, wording
from appliance.report.blocks import Finding, Tone
from appliance.report.compose import compose
from appliance.report.evidence import Evidence, gather
from appliance.report.verdict import headline
from appliance.watermark.certificate import certificate
from tests.unit.report.story import (
    CHECKS,
    COMPARISONS,
    HEX,
    ISOLATION,
    KEY,
    OTHER,
    PLAN,
    RUN,
    SPENT,
    WHOLE,
    Story,
    build,
)

FILE = Path(wording.__file__).with_name(wording.WORDING)
EVALUATION = ("evaluation.reserved", "evaluation.started", "evaluation.settled")
MARK = ("watermark.committed", "watermark.embedded", "watermark.keyed")
PHASES = [
    {"name": "basics", "steps": 40, "attempts": 44, "sample_rate": "1/20", "declared_units": 2000, "field": "topic",
     "values": ["heart", "lung"]},
    {"name": "rest", "steps": 80, "attempts": 86, "sample_rate": "8/375", "declared_units": 12000},
]  # fmt: skip
NETWORKS = ("not restricted", "denied by seccomp", LOOPBACK_ONLY, WIREGUARD_DECLARED)


def stories() -> Iterator[Story]:
    """One run after the other, each with something that the others do not have."""
    whole = build(WHOLE)
    yield whole
    yield from _unfinished(whole)
    yield from _guarantees(whole)
    yield from _budgets(whole)
    yield from _selftests(whole)
    yield from _marks(whole)
    yield from _evaluations(whole)
    yield from _surroundings(whole)


def _unfinished(whole: Story) -> Iterator[Story]:
    yield whole.only("run.reserved")
    yield whole.only("run.reserved").but("run.reserved", plan=PLAN | {"unit": "record"})
    yield whole.only("run.reserved", "run.started", "watermark.committed", "watermark.keyed", "audit.selftest")
    for type_ in ("run.failed", "run.aborted"):
        ended = whole.without("run.settled", "watermark.embedded", *EVALUATION, "run.failed")
        yield _with(ended, type_, RUN, {**SPENT, **({"code": 9, "reason": "WillNotFit"} if "failed" in type_ else {})})
    yield _with(whole, "run.resumed", RUN, {"run_id": RUN, "dataset_id": SPENT["dataset_id"], "attempts_left": 4})


def _guarantees(whole: Story) -> Iterator[Story]:
    phased = whole.but("run.reserved", plan={**PLAN, "phases": PHASES}).but("run.settled", phases=PHASES)
    for story in (whole, phased):
        yield story
        yield story.but("run.reserved", plan={**_plan(story), "unit": "record"})
    yield whole.but("run.reserved", plan={**PLAN, "neighbouring": "replace-one"})
    for unit in ("record", "subject"):
        yield whole.but("run.reserved", plan={**PLAN, "unit": unit, "split": "paragraph"})
    for epsilon, delta in (("0.9", PLAN["delta"]), ("3.9", PLAN["delta"]), ("14.0", PLAN["delta"]), ("1.0", "0.0001")):
        story = whole.but("run.settled", epsilon_charged=epsilon, delta=delta)
        yield story.but("run.reserved", plan={**PLAN, "epsilon": "15.0"}, cap="20.0")
    (settled,) = [event for event in whole.events if event.type == "run.settled"]
    older = {name: value for name, value in settled.facts.items() if name not in ("epsilon_curve", "odds_bound")}
    yield Story(tuple(replace(event, facts=older) if event is settled else event for event in whole.events))


def _before_the_filter(whole: Story) -> Story:
    """Reservations that do not state at which delta the lifetime is counted, nor by what."""
    since = ("lifetime_delta", "filter_order", "counted_by")

    def older(event: LoggedEvent) -> LoggedEvent:
        facts = {name: value for name, value in event.facts.items() if name not in since}
        return replace(event, facts=facts) if event.type.endswith(".reserved") else event

    return Story(tuple(map(older, whole.events)))


def _plan(story: Story) -> dict[str, Any]:
    return next(dict(event.facts["plan"]) for event in story.events if event.type == "run.reserved")


def _budgets(whole: Story) -> Iterator[Story]:
    yield whole.but("run.reserved", epsilon_after="8.1").but("evaluation.reserved", epsilon_after="8.1")
    yield whole.but("run.settled", epsilon_charged="4.2")
    yield _before_the_filter(whole)
    yield whole.without("budget.stated")
    stated = next(event for event in whole.events if event.type == "budget.stated")
    unbounded = {name: value for name, value in stated.facts.items() if not name.startswith("epsilon_")}
    yield Story(tuple(replace(event, facts=unbounded) if event is stated else event for event in whole.events))
    for type_ in ("run.settled", "run.failed", "run.aborted", "evaluation.settled", "evaluation.failed"):
        other = {**OTHER, "evaluation_id": "eval_other"} if type_.startswith("evaluation") else OTHER
        yield _with(whole.without("run.failed"), type_, "other", other)
        yield _subjectless(_with(whole.without("run.failed"), type_, None, other))


def _selftests(whole: Story) -> Iterator[Story]:
    yield whole.without("audit.selftest")
    yield whole.but("audit.selftest", passed=False, checks=[CHECKS[0], {**CHECKS[1], "passed": False}])
    yield whole.but("audit.selftest", checks=[])
    yield whole.but("audit.selftest", spec_sha256=HEX[0])
    yield whole.moved("audit.selftest", 33)


def _marks(whole: Story) -> Iterator[Story]:
    yield whole.without(*MARK)
    yield whole.without("watermark.committed")
    yield whole.without("watermark.embedded")
    yield whole.without("run.started")
    yield whole.moved("watermark.committed", 33)
    yield whole.but("watermark.committed", commitment=HEX[0])
    yield whole.but("watermark.embedded", adapter_sha256=HEX[0])
    yield whole.but("watermark.embedded", p_bound="2^-40")
    for score in ("124.0", "1.0"):
        changed = ("none", "bf16", "int8", "nf4", "prune30", "other")
        yield whole.but("watermark.embedded", score_predicted=dict.fromkeys(changed, score))
    yield whole.but("watermark.embedded", score_predicted="60.0")
    facts = {"run_id": RUN, "key_id": KEY, "suspect_sha256": HEX[11], "detected": False, "score": "1.5", "p_bound": "1"}
    yield _with(whole, "watermark.detected", RUN, {**facts, "keys_tested": 7})
    yield _with(whole, "watermark.started", RUN, facts)


def _evaluations(whole: Story) -> Iterator[Story]:
    yield whole.without(*EVALUATION)
    yield whole.without("evaluation.settled")
    (done,) = [event for event in whole.events if event.type == "evaluation.settled"]
    failed = replace(done, type="evaluation.failed", facts={**done.facts, "code": 9, "reason": "WillNotFit"})
    yield Story(tuple(failed if event is done else event for event in whole.events))
    earlier = replace(done, index=12, facts={**done.facts, "evaluation_id": "eval_earlier"})
    for event in (earlier, replace(failed, index=12, facts=earlier.facts | {"reason": "WillNotFit"})):
        yield Story((*whole.events, event))
    yield whole.but("evaluation.settled", comparisons=[])
    for low, high in (("0.1", "0.3"), ("-0.3", "-0.1"), ("-0.1", "0.1")):
        rows = [{**row, "low": low, "high": high} for row in [*copy.deepcopy(COMPARISONS), *COMPARISONS]]
        yield whole.but("evaluation.settled", comparisons=rows, public="none")


def _surroundings(whole: Story) -> Iterator[Story]:
    for network in NETWORKS:
        for files in ("not restricted", ISOLATION["files"]):
            yield whole.but("run.settled", isolation={"network": network, "files": files, "core_dumps": "off"})
    yield whole.but("run.settled", isolation=None, libraries=None)
    yield whole.without("policy.activated", "model.imported")
    yield whole.but("model.imported", licence="A licence")
    every = _one_of_each_type(whole)
    yield _subjectless(every)
    yield Story(tuple(replace(event, subject="somebody") for event in every.events))


def _one_of_each_type(whole: Story) -> Story:
    """Entries about the run of every type that a report may cite, whatever that makes of the run."""
    told = (whole, *_unfinished(whole), *_marks(whole), *_evaluations(whole))
    kinds = {event.type: event for story in told for event in story.events if event.facts.get("run_id", RUN) == RUN}
    return Story(tuple(replace(event, index=index) for index, event in enumerate(kinds.values())))


def _with(story: Story, type_: str, subject: str | None, facts: dict[str, Any]) -> Story:
    """The story with one more entry at its end."""
    last = max(story.events, key=lambda event: event.index)
    return Story((*story.events, replace(last, index=last.index + 2, type=type_, subject=subject, facts=facts)))


def _subjectless(story: Story) -> Story:
    """The story with entries that are about nothing by name, but for the run."""
    return Story(tuple(replace(e, subject=e.subject if e.type == "run.reserved" else None) for e in story.events))


# --- what they say ---------------------------------------------------------------------------------------------------


def told() -> bytes:
    """The list: the head of the page, then what pages, model cards and JSON documents say, each line once."""
    heads: set[str] = set()
    pages, cards, words = dict[str, None](), dict[str, None](), dict[str, None]()
    for story in stories():
        evidence = gather(RUN, story.events, story.head)
        skeleton = page.skeleton(compose(evidence), evidence, "en")
        heads.add(skeleton.partition("</head>\n")[0])
        pages |= dict.fromkeys((*wording.lines(skeleton), *_headlines(evidence)))
        cards |= dict.fromkeys(_card(evidence))
        words |= dict.fromkeys(_json(story))
    words |= dict.fromkeys(_certificate())
    (head,) = heads
    lines = [line for line in {**pages, **cards, **words} if line]
    return "\n".join([f"{head}</head>", *lines, ""]).encode()


def _headlines(evidence: Evidence) -> Iterator[str]:
    """The headline for each set of lines of the verdict that are bad, of which nothing is known, or that need care."""
    tones: dict[Tone, tuple[str, ...]] = {
        "bad": ("Privacy", "Budget", "Self-test", "Watermark", "Utility"),
        "open": ("Self-test", "Watermark", "Utility", "Isolation"),
        "caution": ("Privacy", "Self-test", "Watermark", "Utility", "Isolation"),
    }
    for tone, topics in tones.items():
        for count in range(len(topics) + 1):
            for some in combinations(topics, count):
                said = headline(evidence, tuple(Finding(topic, tone, ()) for topic in some))[1]
                yield from f'<p class="headline">{"".join(map(str, said))}</p>'.split("\n")


def _card(evidence: Evidence) -> list[str]:
    """The lines of the model card that hold no value."""
    return [line for line in card.lines(evidence) if not card.has_value(line)] if evidence.settled else []


def _json(story: Story) -> Iterator[str]:
    """Names and words of the JSON documents, and the places that each name of the privacy statement stands for."""
    evidence = gather(RUN, story.events, story.head)
    report = json.loads(page.twin(compose(evidence), evidence, "en"))
    stated = json.loads(statement.privacy_statement(evidence))
    yield from _words({**report, "figures": []})
    yield from _words({**stated, "values": []})
    for value in stated["values"]:
        yield f"{value['name']} = {wording.place_of(value['entry'], value['fact'], evidence)}"


def _certificate() -> Iterator[str]:
    """What the certificate of a mark says besides facts of the entry."""
    digests = ("suspect_sha256", "model_sha256", "escrow_sha256", "algorithm_sha256", "commitment", "key_id")
    compared = dict.fromkeys(digests, HEX[0]) | {"run_id": RUN}
    document = json.loads(certificate(compared | {"role": f"owner/{RUN}"}, "adapter", 60.0, 1, {"none": 60.0}))
    for key, item in document.items():
        if key not in {*compared, "statistic", "p_bound", "predicted"}:
            yield f"{key}: {json.dumps(item)}".replace(RUN, "{run_id}")


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("run_id", "origin", "root", "tree_size"):
                yield from (key, *_words(item))
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    else:
        yield str(value)


if __name__ == "__main__":
    FILE.write_bytes(told())
    print(hashlib.sha256(FILE.read_bytes()).hexdigest())
