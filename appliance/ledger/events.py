"""The kinds of event, with the facts each must and may state. Anything else is refused when it is appended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.ledger.canonical import LeafInvalid, check


@dataclass(frozen=True, slots=True)
class EventType:
    """Names of the facts that an event must state and may state, and those of them that may be null."""

    required: frozenset[str]
    optional: frozenset[str]
    nullable: frozenset[str]


def _event(required: str, optional: str = "", nullable: str = "") -> EventType:
    return EventType(frozenset(required.split()), frozenset(optional.split()), frozenset(nullable.split()))


# What a run that has ended was charged, and what it came to.
_SPENT = (
    "run_id dataset_id attempts epsilon_pld epsilon_prv epsilon_rdp epsilon_charged delta sampler_delta "
    "noise_multiplier sample_rate"
)

# `code` is the exit status of the refusal, `reason` a sentence of public values; epsilons, deltas and other numbers
# that are not whole are decimal strings, a sample rate is "numerator/denominator".
EVENTS: dict[str, EventType] = {
    "ledger.created": _event("origin keys schema"),
    "ledger.upgraded": _event("revision schema"),
    "ledger.rekeyed": _event("root old keys signatures"),
    "clock.regression": _event("last observed"),
    "body.erased": _event("index"),
    "policy.activated": _event("name sha256"),
    "key.created": _event("kind epoch slots body_key_sha256"),
    "key.unlocked": _event("until"),
    "key.locked": _event(""),
    "data.sealed": _event(
        "dataset_id name purpose class unit_kind unit_key max_records declared_units format object_blake3 key_epoch "
        "overlaps fingerprints_blake3 source",
        optional="kept",
        nullable="unit_key",
    ),
    "data.refused": _event("code reason"),
    "model.imported": _event(
        "model_id sha256 source_format source_sha256 architecture parameters licence has_chat_template isolation "
        "libraries"
    ),
    "model.refused": _event("code reason"),
    "run.reserved": _event("run_id dataset_id model_id spec_sha256 plan epsilon_before epsilon_after cap"),
    "run.started": _event("run_id dataset_id attempts_left nonce", optional="ranks nnodes nodes"),
    "run.resumed": _event("run_id dataset_id attempts_left nonce", optional="ranks nnodes nodes"),
    "run.checkpointed": _event("run_id attempts journal_sha256"),
    "run.settled": _event(
        f"{_SPENT} steps adapter_sha256 isolation libraries", optional="epsilon_curve odds_bound phases"
    ),
    "run.failed": _event(f"{_SPENT} code reason", optional="phases"),
    "run.aborted": _event(_SPENT, optional="phases"),
    "run.refused": _event("code reason"),
    "machine.examined": _event("accepted device hardware examined checks libraries document_sha256"),
    "audit.selftest": _event("run_id spec_sha256 passed checks result_sha256 isolation libraries"),
    "watermark.keyed": _event("key_id commitment key_epoch"),
    "watermark.committed": _event("run_id key_id commitment model_sha256 algorithm_sha256"),
    "watermark.started": _event("run_id key_id nonce purpose"),
    "watermark.embedded": _event(
        "run_id key_id commitment model_sha256 adapter_sha256 released_sha256 escrow_sha256 algorithm_sha256 "
        "certificate_sha256 strength modules score score_predicted p_bound isolation libraries"
    ),
    "watermark.detected": _event(
        "run_id key_id suspect_sha256 suspect_kind score p_bound detected keys_tested certificate_sha256"
    ),
    "watermark.refused": _event("code reason"),
    "evaluation.reserved": _event(
        "evaluation_id run_id dataset_id spec_sha256 declared_units clip_nat noise_multiplier epsilon delta "
        "sampler_delta epsilon_before epsilon_after cap"
    ),
    "evaluation.started": _event("evaluation_id run_id dataset_id nonce"),
    "evaluation.settled": _event(
        "evaluation_id run_id dataset_id epsilon_charged delta declared_units comparisons released public isolation "
        "libraries"
    ),
    "evaluation.failed": _event("evaluation_id run_id dataset_id epsilon_charged delta code reason"),
    "evaluation.refused": _event("code reason"),
    "report.built": _event("report_id run_id tree_size root manifest_sha256"),
    "bundle.exported": _event("bundle_id run_id manifest_sha256 recipient released_sha256", nullable="recipient"),
    "export.refused": _event("code reason"),
}


def check_facts(type_: str, facts: Mapping[str, Any]) -> None:
    """Raise `LeafInvalid` unless `facts` are the public facts that an event of this type states."""
    event = EVENTS.get(type_)
    if event is None:
        raise LeafInvalid(f"there is no event {type_}")
    names = facts.keys()
    missing = event.required - names
    unknown = names - event.required - event.optional
    if missing or unknown:
        wrong = ", ".join(sorted(missing or unknown))
        raise LeafInvalid(f"{type_} {'lacks' if missing else 'has no'} {wrong}")
    for name, value in facts.items():
        if value is None and name not in event.nullable:
            raise LeafInvalid(f"{type_} must state {name}")
        check(value, f"{type_} {name}")
