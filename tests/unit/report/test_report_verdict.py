"""The verdict follows the facts: each thing that can be wrong changes the words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.errors import ArtefactMissing, UsageError
from appliance.isolation.sandbox import LOOPBACK_ONLY, WIREGUARD_DECLARED, WIREGUARD_ONLY
from appliance.report.documents import documents
from appliance.report.evidence import gather
from appliance.report.figures import shorten
from appliance.report.verdict import findings, headline
from tests.unit.report import reading
from tests.unit.report.story import CHECKS, COMPARISONS, HEX, PLAN, RUN, SPENT, Story

EVALUATION = ("evaluation.reserved", "evaluation.started", "evaluation.settled")
MARK = ("watermark.committed", "watermark.embedded", "watermark.keyed")


def verdict(story: Story) -> tuple[str, str, dict[str, tuple[str, str]]]:
    """Tone and words of the headline; tone and words of each line. Page and JSON agree on the tones."""
    written = story.render()
    tone, words, lines = reading.verdict(written["report.html"])
    twin = json.loads(written["report.json"])
    assert twin["verdict"]["tone"] == tone
    assert {line["topic"]: line["tone"] for line in twin["findings"]} == {
        topic: said[0] for topic, said in lines.items()
    }
    return tone, words, lines


def compared(*intervals: tuple[str, str, str]) -> list[dict[str, Any]]:
    rows = copy.deepcopy(COMPARISONS)
    for row, (gain, low, high) in zip(rows, intervals, strict=True):
        row |= {"gain_nat": gain, "low": low, "high": high}
    return rows


def settled(story: Story, **facts: Any) -> Story:
    return story.but("run.settled", **facts)


def test_a_run_that_went_well_says_so_and_that_no_attack_was_run(story: Story) -> None:
    tone, words, lines = verdict(story)
    assert tone == "good"
    assert "has a privacy guarantee" in words
    assert "No attack was run" in words
    assert {topic: tone for topic, (tone, _) in lines.items()} == {
        **dict.fromkeys(("Privacy", "Budget", "Self-test", "Watermark", "Utility", "Isolation"), "good"),
        "Attacks": "open",
    }


# What is changed; the line that must say so, its tone, and words that it must hold.
CHANGES: dict[str, tuple[Callable[[Story], Story], str, str, str]] = {
    "failed check": (
        lambda s: s.but("audit.selftest", checks=[CHECKS[0], {**CHECKS[1], "passed": False}]),
        "Self-test",
        "bad",
        "FAILED",
    ),
    "failed as a whole": (lambda s: s.but("audit.selftest", passed=False), "Self-test", "bad", "FAILED"),
    "no self-test": (lambda s: s.without("audit.selftest"), "Self-test", "open", "Not performed"),
    "empty self-test": (lambda s: s.but("audit.selftest", checks=[]), "Self-test", "open", "shows nothing"),
    "self-test of another job": (
        lambda s: s.but("audit.selftest", spec_sha256=HEX[0]),
        "Self-test",
        "bad",
        "another job",
    ),
    "late self-test": (lambda s: s.moved("audit.selftest", 33), "Self-test", "caution", "only after training"),
    "no evaluation": (lambda s: s.without(*EVALUATION), "Utility", "open", "Not performed"),
    "evaluation without comparison": (
        lambda s: s.but("evaluation.settled", comparisons=[]),
        "Utility",
        "open",
        "no comparison",
    ),
    "no gain": (
        lambda s: s.but(
            "evaluation.settled", comparisons=compared(("0.01", "-0.03", "0.05"), ("0.01", "-0.03", "0.05"))
        ),
        "Utility",
        "caution",
        "contains zero",
    ),
    "gain lost by the mark": (
        lambda s: s.but("evaluation.settled", comparisons=compared(("0.2", "0.1", "0.3"), ("0.04", "0", "0.08"))),
        "Utility",
        "caution",
        "contains zero",
    ),
    "worse": (
        lambda s: s.but("evaluation.settled", comparisons=compared(("0.2", "0.1", "0.3"), ("-0.2", "-0.3", "-0.1"))),
        "Utility",
        "bad",
        "WORSE",
    ),
    "no mark": (lambda s: s.without(*MARK), "Watermark", "open", "carries no mark"),
    "mark without commitment": (lambda s: s.without("watermark.committed"), "Watermark", "bad", "proves nothing"),
    "commitment after the start": (lambda s: s.moved("watermark.committed", 33), "Watermark", "bad", "proves nothing"),
    "commitment to another key": (
        lambda s: s.but("watermark.committed", commitment=HEX[0]),
        "Watermark",
        "bad",
        "another key",
    ),
    "mark on another adapter": (
        lambda s: s.but("watermark.embedded", adapter_sha256=HEX[0]),
        "Watermark",
        "bad",
        "not the one",
    ),
    "weak mark": (lambda s: s.but("watermark.embedded", p_bound="2^-40"), "Watermark", "caution", "too weak"),
    "no mark to be seen": (lambda s: s.but("watermark.embedded", p_bound="1"), "Watermark", "caution", "too weak"),
    "strong guarantee": (lambda s: settled(s, epsilon_charged="0.9000"), "Privacy", "good", "A strong"),
    "weak guarantee": (
        lambda s: settled(s, epsilon_charged="14.0000").but("run.reserved", plan={**PLAN, "epsilon": "15.0"}),
        "Privacy",
        "caution",
        "A weak",
    ),
    "delta of one over the units": (lambda s: settled(s, delta="0.0001"), "Privacy", "bad", "protects nobody"),
    "beyond the cap": (
        lambda s: s.but("run.reserved", epsilon_after="8.1"),
        "Budget",
        "bad",
        "beyond the lifetime cap",
    ),
    "charged beyond the reservation": (
        lambda s: settled(s, epsilon_charged="4.2"),
        "Budget",
        "bad",
        "more than it had reserved",
    ),
    "network open": (
        lambda s: settled(s, isolation={"network": "not restricted", "files": "not restricted", "core_dumps": "off"}),
        "Isolation",
        "caution",
        "NOT cut off",
    ),
    "files open": (
        lambda s: settled(
            s, isolation={"network": "denied by seccomp", "files": "not restricted", "core_dumps": "off"}
        ),
        "Isolation",
        "caution",
        "file system",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_or_missing_changes_the_words(name: str, story: Story) -> None:
    change, topic, tone, words = CHANGES[name]
    before = findings(gather(RUN, story.events, story.head))
    changed = change(story)
    evidence = gather(RUN, changed.events, changed.head)
    after = findings(evidence)
    (line,) = [finding for finding in after if finding.topic == topic]
    assert line.tone == tone
    assert words in "".join(map(str, line.sentence))
    assert [f for f in before if f.topic == topic] != [line]
    said, _ = headline(evidence, after)
    assert said == ("good" if tone == "good" else "bad" if tone == "bad" else "caution")


@pytest.mark.parametrize("network", [LOOPBACK_ONLY, WIREGUARD_ONLY])
def test_several_ranks_are_cut_off_and_the_report_says_how(story: Story, network: str) -> None:
    reached = {"network": network, "files": "restricted by landlock (abi 4)", "core_dumps": "off"}
    tone, words = verdict(settled(story, isolation=reached))[2]["Isolation"]
    assert tone == "good"
    assert "reached only each other" in words
    assert network in words


def test_a_tunnel_that_is_only_declared_is_said_to_be_so(story: Story) -> None:
    reached = {"network": WIREGUARD_DECLARED, "files": "restricted by landlock (abi 4)", "core_dumps": "off"}
    tone, words = verdict(settled(story, isolation=reached))[2]["Isolation"]
    assert tone == "caution"
    assert "as the administrator declares" in words
    assert "reached only each other" not in words


def again(story: Story, type_: str, index: int, **facts: Any) -> Story:
    """The story with an entry of this type once more, at another place."""
    (event,) = [event for event in story.events if event.type == type_]
    return Story((*story.events, replace(event, index=index, facts={**event.facts, **facts})))


@pytest.mark.parametrize(
    ("index", "passed", "tone"), [(33, True, "good"), (33, False, "bad"), (28, False, "good"), (30, False, "bad")]
)
def test_every_self_test_counts_that_was_not_made_again(index: int, passed: bool, tone: str, story: Story) -> None:
    """A resumed run is tested again; a test that failed before training is superseded by one that passed."""
    story = again(story, "audit.selftest", index, passed=passed)
    assert verdict(story)[2]["Self-test"][0] == tone
    assert story.render()["report.html"].count(b"<caption>Checks of the self-test</caption>") == 2


def test_earlier_evaluations_are_listed(story: Story) -> None:
    earlier = again(story, "evaluation.settled", 40, evaluation_id="eval_earlier", epsilon_charged="0.5000")
    shown = rows(earlier, "utility")
    assert shown["eval_earlier"] == "settled"
    assert "eval_earlier" not in rows(story, "utility")
    assert verdict(earlier)[2]["Utility"] == verdict(story)[2]["Utility"]


def test_a_bad_line_is_named_in_the_headline(story: Story) -> None:
    tone, words, _ = verdict(story.but("audit.selftest", passed=False))
    assert (tone, words) == ("bad", "Do not rely on this adapter as it is. What is wrong: self-test.")


def test_what_is_missing_is_named_in_the_headline(story: Story) -> None:
    tone, words, _ = verdict(story.without("audit.selftest", *EVALUATION))
    assert tone == "caution"
    assert words.endswith("Nothing is known about: self-test and utility.")


@pytest.mark.parametrize("kind", ["run.failed", "run.aborted"])
def test_a_run_that_released_nothing_says_what_it_cost(kind: str, story: Story) -> None:
    (ending,) = [event for event in story.events if event.type == "run.settled"]
    ended = story.without("run.settled", "watermark.embedded", *EVALUATION)
    facts = {name: value for name, value in ending.facts.items() if name in SPENT} | {"code": 9, "reason": "WillNotFit"}
    story = Story((*ended.events, replace(ending, type=kind, facts=facts)))
    written = story.render()
    assert "README.md" not in written
    tone, words, lines = verdict(story)
    assert tone == "caution"
    assert words.startswith(f"This run {kind.removeprefix('run.')}.")
    assert lines["Privacy"][0] == "open"
    said = reading.paragraphs(written["report.html"], "guarantee")[0]
    assert "released nothing" in said
    assert "3.880" in said


@pytest.mark.parametrize("types", [("run.reserved",), ("run.reserved", "audit.selftest", "run.started")])
def test_a_run_that_has_not_ended_guarantees_nothing(types: tuple[str, ...], story: Story) -> None:
    begun = story.only(*types)
    tone, words, lines = verdict(begun)
    assert tone == "open"
    assert "not ended" in words
    assert lines["Privacy"][0] == lines["Budget"][0] == lines["Isolation"][0] == "open"
    statement = json.loads(begun.render()["privacy_statement.json"])
    assert statement["released"] == "nothing"
    assert "epsilon" not in {value["name"] for value in statement["values"]}


def test_a_failed_evaluation_is_charged_and_shows_nothing(story: Story) -> None:
    (done,) = [event for event in story.events if event.type == "evaluation.settled"]
    names = ("evaluation_id", "run_id", "dataset_id", "epsilon_charged", "delta")
    facts = {name: done.facts[name] for name in names} | {"code": 9, "reason": "WillNotFit"}
    failed = Story(tuple(replace(e, type="evaluation.failed", facts=facts) if e is done else e for e in story.events))
    _, words, lines = verdict(failed)
    assert lines["Utility"] == ("open", "The evaluation failed: nothing is known.")
    assert "utility" in words
    assert "0.213" not in failed.render()["report.html"].decode()


def test_a_detection_that_lost_the_mark_is_said_and_one_on_other_files_is_not_shown(story: Story) -> None:
    (mark,) = [event for event in story.events if event.type == "watermark.embedded"]
    facts = {
        "run_id": RUN, "key_id": mark.facts["key_id"], "suspect_sha256": HEX[11], "suspect_kind": "adapter",
        "score": "1.5", "p_bound": "1", "detected": False, "keys_tested": 7, "certificate_sha256": HEX[0],
    }  # fmt: skip
    seen = replace(mark, index=mark.index + 1, type="watermark.detected", facts=facts)
    assert verdict(Story((*story.events, seen)))[2]["Watermark"][0] == "caution"
    other = replace(seen, facts={**facts, "suspect_sha256": HEX[0]})
    assert verdict(Story((*story.events, other)))[2]["Watermark"][0] == "good"


def rows(story: Story, anchor: str) -> dict[str, str]:
    return {row[0]: row[1] for row in reading.rows(story.render()["report.html"], anchor)}


def test_what_has_not_run_is_listed_as_not_performed(story: Story) -> None:
    whole = rows(story, "performed")
    never = [step for step, where in whole.items() if where == "not performed"]
    for word in ("Canary", "Robustness", "Quantisation", "Serving", "accuracy", "costs"):
        assert any(word in step for step in never)
    assert whole["Self-test of the training engine"] == "entry 29"
    bare = rows(story.only("run.reserved"), "performed")
    assert set(bare.values()) == {"not performed"}
    assert rows(story, "spending")["Lower bound from an attack on the adapter"] == "not performed"


@pytest.mark.parametrize(
    ("score", "words"), [("13.500", "yes"), ("13.400", "yes"), ("13.300", "NO"), ("0.000", "NO"), ("124.880", "yes")]
)
def test_what_the_mark_would_not_survive_is_said(score: str, words: str, story: Story) -> None:
    page = story.but("watermark.embedded", score_predicted={"nf4": score}).render()["report.html"]
    assert ["nf4: merged, quantised to this format", shorten(score), words] in reading.rows(page, "watermark")


def test_the_order_of_commitment_training_and_mark_is_shown(story: Story) -> None:
    shown = rows(story, "watermark")
    steps = ("The key was committed to", "Training started", "Training was settled", "The mark was embedded")
    order = [int(shown[step]) for step in steps]
    assert order == sorted(order)


def test_a_run_without_a_course_of_epsilon_shows_its_end(story: Story) -> None:
    (ending,) = [event for event in story.events if event.type == "run.settled"]
    older = {name: value for name, value in ending.facts.items() if name not in ("epsilon_curve", "odds_bound")}
    old = Story(tuple(replace(e, facts=older) if e is ending else e for e in story.events))
    assert rows(old, "spending")["PLD (reserves, and draws the curve)"] == "3.873"
    assert b"48.396" not in b"".join(old.render().values())


def test_the_words_promise_no_more_than_the_bound(story: Story) -> None:
    for data in story.render().values():
        words = data.decode().lower()
        for claim in ("cannot be reversed", "anonymous", "anonymised", "impossible", "no risk", "guaranteed private"):
            assert claim not in words


def test_an_unknown_run_and_an_unknown_language_are_refused(story: Story) -> None:
    with pytest.raises(ArtefactMissing):
        story.render("run_none")
    with pytest.raises(UsageError):
        documents(RUN, story.events, story.head, language="xx")
