"""The verdict, computed from the facts: each line says what holds, what does not, or that nothing is known."""

from __future__ import annotations

import re
from decimal import Decimal

from appliance.events.logged import LoggedEvent
from appliance.events.states import RunState
from appliance.report.blocks import Finding, Tone, say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Sentence, fact, items, leaf_field, states
from appliance.report.results import above_zero

# Tiers of Ponomareva et al. 2023, "How to DP-fy ML", arXiv 2303.00654, section 5.2.
STRONG, REASONABLE = Decimal(1), Decimal(10)
CLAIMED_BITS = 128
"""A mark is claimed from a bound on chance of 2^-128 on."""


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """List the lines of the verdict, in the order in which they matter."""
    found = (privacy(evidence), budget(evidence), selftest(evidence), watermark(evidence), utility(evidence))
    return (*found, isolation(evidence), attacks())


def headline(evidence: Evidence, found: tuple[Finding, ...]) -> tuple[Tone, Sentence]:
    """Say the verdict in a sentence, and its tone: the worst of its lines."""
    if evidence.state in (RunState.FAILED, RunState.ABORTED):
        return "caution", words(f"This run {evidence.state}. It released no adapter; what it spent is charged.")
    if evidence.settled is None:
        return "open", words("This run has not ended. It guarantees nothing yet and must not be relied on.")
    tones = {finding.topic: finding.tone for finding in found}
    bad = [topic.lower() for topic, tone in tones.items() if tone == "bad"]
    missing = [topic.lower() for topic, tone in tones.items() if tone == "open" and topic != ATTACKS]
    careful = [topic.lower() for topic, tone in tones.items() if tone == "caution"]
    if bad:
        return "bad", words(f"Do not rely on this adapter as it is. What is wrong:\n{_list(bad)}.")
    if missing:
        return "caution", words(f"The adapter has a privacy guarantee. Nothing is known about:\n{_list(missing)}.")
    if careful:
        return "caution", words(f"The adapter has a privacy guarantee. Read these lines with care:\n{_list(careful)}.")
    return "good", words(
        "The adapter has a privacy guarantee, and every check that was made came out well. No attack was run on it."
    )


def privacy(evidence: Evidence) -> Finding:
    """Say how much the guarantee is worth."""
    ending = evidence.settled
    if ending is None:
        return Finding("Privacy", "open", words("There is no adapter, so there is no guarantee to state."))
    epsilon = Decimal(ending.facts["epsilon_charged"])
    numbers = ("epsilon ", fact(ending, "/epsilon_charged"), " at delta ", fact(ending, "/delta"))
    if Decimal(ending.facts["delta"]) * evidence.reserved.facts["plan"]["declared_units"] >= 1:
        many = "Delta is as large as one over the number of units, which protects nobody: "
        return Finding("Privacy", "bad", say(many, *numbers, "."))
    if epsilon <= STRONG:
        return Finding("Privacy", "good", say("A strong formal guarantee: ", *numbers, "."))
    if epsilon <= REASONABLE:
        return Finding("Privacy", "good", say("A reasonable formal guarantee: ", *numbers, ". Smaller is stronger."))
    weak = "A weak formal guarantee, which by itself excludes little: "
    return Finding("Privacy", "caution", say(weak, *numbers, "."))


def budget(evidence: Evidence) -> Finding:
    """Say whether the reservation kept within the cap, and the charge within the reservation."""
    reserved, ending = evidence.reserved, evidence.ending
    numbers = say(fact(reserved, "/epsilon_after"), " of ", fact(reserved, "/cap"))
    if Decimal(reserved.facts["epsilon_after"]) > Decimal(reserved.facts["cap"]):
        return Finding("Budget", "bad", say("The reservation went beyond the lifetime cap: ", *numbers, "."))
    if ending is None:
        return Finding("Budget", "open", say("Reserved up to epsilon ", *numbers, " of the lifetime; not settled."))
    if Decimal(ending.facts["epsilon_charged"]) > Decimal(reserved.facts["plan"]["epsilon"]) + Decimal("0.0001"):
        return Finding("Budget", "bad", words("The run was charged more than it had reserved."))
    return Finding("Budget", "good", say("Within the lifetime cap of the dataset: epsilon ", *numbers, " at most."))


def selftest(evidence: Evidence) -> Finding:
    """Say whether the engine passed its test for this very job, before training, and again when it was resumed."""
    topic, tests = "Self-test", evidence.all("audit.selftest")
    if not tests:
        unknown = "Not performed. That the engine does what the accountant assumes is untested."
        return Finding(topic, "open", words(unknown))
    started = evidence.first("run.started")
    early = [event for event in tests if started is None or event.index < started.index]
    counted = [*early[-1:], *(event for event in tests if event not in early)]
    if any(_failed(event) for event in counted):
        return Finding(topic, "bad", words("The engine FAILED its self-test. The guarantee cannot be relied on."))
    if any(event.facts["spec_sha256"] != evidence.reserved.facts["spec_sha256"] for event in counted):
        return Finding(topic, "bad", words("The self-test that is recorded was made for another job."))
    if not all(event.facts["checks"] for event in counted):
        return Finding(topic, "open", words("The self-test holds no check, so it shows nothing."))
    if not early:
        return Finding(topic, "caution", words("The engine passed its self-test, but only after training had started."))
    entry = leaf_field(early[-1], "/index")
    return Finding(topic, "good", say("The engine passed every check before training (entry ", entry, ")."))


def _failed(event: LoggedEvent) -> bool:
    return event.facts["passed"] is not True or any(check["passed"] is not True for check in event.facts["checks"])


def watermark(evidence: Evidence) -> Finding:
    """Say whether the mark is there, on this adapter, and was committed to before training."""
    event, committed = evidence.last("watermark.embedded"), evidence.first("watermark.committed")
    if event is None:
        return Finding("Watermark", "open", words("Not performed. The adapter carries no mark."))
    problem = _broken(evidence, event, committed)
    if problem:
        return Finding("Watermark", "bad", words(problem))
    bits = re.fullmatch(r"2\^-([0-9]+)", str(event.facts["p_bound"]))
    score = ("score ", fact(event, "/score"), ", chance without the key at most ", fact(event, "/p_bound"))
    if bits is None or int(bits[1]) < CLAIMED_BITS:
        return Finding("Watermark", "caution", say("Embedded, but too weak to be claimed: ", *score, "."))
    lost = [
        event for event in evidence.events if event.type == "watermark.detected" and event.facts["detected"] is not True
    ]
    if lost:
        return Finding(
            "Watermark", "caution", words("A later detection did not find the mark in the released adapter.")
        )
    return Finding("Watermark", "good", say("Embedded with a key that was committed to before training: ", *score, "."))


def _broken(evidence: Evidence, event: LoggedEvent, committed: LoggedEvent | None) -> str:
    """Say what in the order or identity of key, adapter and base model does not fit."""
    started, settled = evidence.first("run.started"), evidence.settled
    if committed is None:
        return "The key was not committed to in the ledger before training, so the mark proves nothing."
    if started is None or not committed.index < started.index < event.index:
        return "The key was committed to after training had started, so the mark proves nothing."
    if any(
        committed.facts[name] != event.facts[name]
        for name in ("key_id", "commitment", "model_sha256", "algorithm_sha256")
    ):
        return "The mark was embedded with another key, base model or algorithm than the ledger had committed to."
    if settled is None or settled.facts["adapter_sha256"] != event.facts["adapter_sha256"]:
        return "The marked adapter is not the one that this run trained."
    return ""


def utility(evidence: Evidence) -> Finding:
    """Say whether the adapter is measurably of use."""
    event, topic = evidence.last("evaluation.settled"), "Utility"
    if event is None:
        failed = evidence.last("evaluation.failed")
        said = (
            "The evaluation failed: nothing is known."
            if failed
            else "Not performed. Whether the adapter is of use is unknown."
        )
        return Finding(topic, "open", words(said))
    rows = [row for _, row in items(event, "/comparisons")]
    if not rows:
        return Finding(topic, "open", words("The evaluation made no comparison: nothing is known."))
    signs = [above_zero(event, row) for row in rows]
    interval = _interval(event, len(rows) - 1)
    if False in signs:
        return Finding(topic, "bad", say("The adapter is measurably WORSE than the base model: ", *interval, "."))
    if None in signs:
        unclear = "No measurable gain: the confidence interval contains zero: "
        return Finding(topic, "caution", say(unclear, *_interval(event, signs.index(None)), "."))
    return Finding(topic, "good", say("Measurably better than the base model on held-out data: ", *interval, "."))


def _interval(event: LoggedEvent, place: int) -> Sentence:
    row = f"/comparisons/{place}"
    gain = ("gain ", fact(event, f"{row}/gain_nat"), " nat per token, interval ")
    return say(*gain, fact(event, f"{row}/low"), " to ", fact(event, f"{row}/high"))


def isolation(evidence: Evidence) -> Finding:
    """Say whether the training process was cut off from the network and from files."""
    event, topic = evidence.settled, "Isolation"
    if event is None or not states(event, "/isolation"):
        return Finding(topic, "open", words("No finished training is recorded."))
    network, files = (fact(event, f"/isolation/{key}") for key in ("network", "files"))
    declared = str(network).startswith("WireGuard in user space only")
    several = declared or str(network).startswith(("loopback only", "WireGuard only"))
    if not (several or str(network).startswith("denied")):
        return Finding(topic, "caution", say("The training process was NOT cut off from the network: ", network, "."))
    if not str(files).startswith("restricted"):
        said = ("Network ", network, "; but the file system was ", files, ".")
        return Finding(topic, "caution", say(*said))
    if declared:
        word = "That training reached only its other machines is what the administrator declares: "
        return Finding(topic, "caution", say(word, network, "; and only its own files (", files, ")."))
    had = "Training was several processes that reached only each other (" if several else "Training had no network ("
    return Finding(topic, "good", say(had, network, ") and only its own files (", files, ")."))


ATTACKS = "Attacks"


def attacks() -> Finding:
    """Say that empirical attacks are not part of this release."""
    return Finding(
        ATTACKS,
        "open",
        words("Not performed: no attack was run on the finished adapter, so there is no empirical lower bound."),
    )


def _list(names: list[str]) -> str:
    """List names, each on a line of its own, so that `wording.txt` need not list every combination of them."""
    return names[0] if len(names) == 1 else ",\n".join(names[:-1]) + " and\n" + names[-1]
