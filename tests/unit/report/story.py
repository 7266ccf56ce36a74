"""A whole run as entries of a ledger, to be bent by each test."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.events.catalog import event
from appliance.events.logged import LoggedEvent
from appliance.report.documents import documents
from appliance.report.evidence import SignedHead

RUN, DATASET, MODEL, KEY = "run_3f9c0a12be47", "ds_71aa00b2c4d5", "smollm2-135m", "wmk_0011223344aa"
HEX = [character * 64 for character in "0123456789abcdef"]
SOFTWARE = {"version": "0.2.0", "sha256": HEX[13]}
ISOLATION = {"network": "denied by seccomp", "files": "restricted by landlock (abi 4)", "core_dumps": "off"}
LIBRARIES = {"torch": "2.13.0", "opacus": "1.6.0", "peft": "0.21.2"}
PLAN = {
    "unit": "subject",
    "max_records": 4,
    "neighbouring": "add-or-remove-one",
    "declared_units": 12000,
    "expected_batch_size": 256,
    "sample_rate": "8/375",
    "steps": 120,
    "attempts": 130,
    "max_grad_norm": "1.0",
    "clipping": "normalised",
    "noise_multiplier": "0.8321533203125",
    "epsilon": "4.0",
    "delta": "0.0000008333333333333333",
    "sampler_delta": "0.0000000001",
    "accountant": "pld",
}
SPENT = {
    "run_id": RUN,
    "dataset_id": DATASET,
    "attempts": 121,
    "epsilon_pld": "3.8721",
    "epsilon_prv": "3.8794",
    "epsilon_rdp": "4.4102",
    "epsilon_charged": "3.8794",
    "delta": PLAN["delta"],
    "sampler_delta": PLAN["sampler_delta"],
    "noise_multiplier": PLAN["noise_multiplier"],
    "sample_rate": PLAN["sample_rate"],
}
CURVE = [[10, "2.1077"], [40, "2.8013"], [80, "3.3941"], [121, "3.8721"]]
CHECKS = [
    {"name": "replay moves by at most C", "passed": True, "value": "0.9999998", "bound": "1.0000010", "count": 131},
    {"name": "noise is Gaussian", "passed": True, "value": "0.412", "bound": "0.00001", "count": 65536},
]
MARK = {"run_id": RUN, "key_id": KEY, "commitment": HEX[1], "model_sha256": HEX[2], "algorithm_sha256": HEX[3]}
EVALUATION = {"evaluation_id": "eval_55aa55aa55aa", "run_id": RUN, "dataset_id": "ds_0heldout0000"}
COMPARISONS = [
    {"name": "adapter", "gain_nat": "0.213", "low": "0.171", "high": "0.255", "noise_std": "0.011"},
    {"name": "released", "gain_nat": "0.209", "low": "0.166", "high": "0.252", "noise_std": "0.011"},
]
PUBLIC = {
    "tokens": "4096",
    "text_sha256": HEX[9],
    "loss_base": "3.1021",
    "loss_adapter": "3.1188",
    "loss_marked": "3.1195",
    "change_percent": "0.0224",
    "low": "0.0101",
    "high": "0.0347",
}
STATED = {
    "run_id": RUN,
    "dataset_id": DATASET,
    "cap": "8.0",
    "lifetime_delta": "0.000000833333333333",
    "filter_order": "3.5",
    "counted_by": "filter",
    "epsilon_spent": "4.1201",
    "epsilon_reserved": "6.5",
    "open": [{"run_id": "run_0000open0000", "dataset_id": DATASET, "epsilon": "2.0"}],
    "exports": [
        {"bundle_id": "bundle_00aa", "recipient": "hospital-x", "entry": 3},
        {"bundle_id": "bundle_00bb", "recipient": None, "entry": 5},
    ],
}
OTHER = {**SPENT, "run_id": "run_0000tuning00", "epsilon_charged": "0.9120"}

# Type, subject, facts; the place in the list is not the index, so that a mix-up of the two shows.
WHOLE: list[tuple[str, str | None, dict[str, Any]]] = [
    ("policy.activated", None, {"name": "default", "sha256": HEX[5]}),
    (
        "model.imported",
        MODEL,
        {
            "model_id": MODEL,
            "sha256": HEX[2],
            "source_format": "safetensors",
            "source_sha256": HEX[4],
            "architecture": "LlamaForCausalLM",
            "parameters": 134515008,
            "licence": "apache-2.0",
            "has_chat_template": True,
            "isolation": ISOLATION,
            "libraries": LIBRARIES,
        },
    ),
    ("run.failed", "run_0000tuning00", {**OTHER, "code": 9, "reason": "WillNotFit"}),
    ("watermark.keyed", KEY, {"key_id": KEY, "commitment": HEX[1], "key_epoch": 1}),
    (
        "run.reserved",
        RUN,
        {
            "run_id": RUN,
            "dataset_id": DATASET,
            "model_id": MODEL,
            "spec_sha256": HEX[6],
            "plan": PLAN,
            "epsilon_before": "0.912",
            "epsilon_after": "4.1833",
            "cap": "8.0",
            "lifetime_delta": "0.000000833333333333",
            "filter_order": "3.5",
            "counted_by": "filter",
        },
    ),
    ("watermark.committed", RUN, MARK),
    (
        "audit.selftest",
        RUN,
        {
            "run_id": RUN,
            "spec_sha256": HEX[6],
            "passed": True,
            "checks": CHECKS,
            "result_sha256": HEX[7],
            "isolation": ISOLATION,
            "libraries": LIBRARIES,
        },
    ),
    ("run.started", RUN, {"run_id": RUN, "dataset_id": DATASET, "attempts_left": 130, "nonce": HEX[8][:32]}),
    (
        "run.settled",
        RUN,
        {
            **SPENT,
            "steps": 120,
            "adapter_sha256": HEX[10],
            "isolation": ISOLATION,
            "libraries": LIBRARIES,
            "epsilon_curve": CURVE,
            "odds_bound": "48.396",
        },
    ),
    (
        "watermark.embedded",
        RUN,
        {
            **MARK,
            "adapter_sha256": HEX[10],
            "released_sha256": HEX[11],
            "escrow_sha256": HEX[12],
            "certificate_sha256": HEX[14],
            "strength": "0.0821",
            "modules": 210,
            "score": "124.051",
            "score_predicted": {"none": "124.880", "nf4": "39.004", "int8": "117.310"},
            "p_bound": "2^-128",
            "isolation": ISOLATION,
            "libraries": LIBRARIES,
        },
    ),
    (
        "evaluation.reserved",
        EVALUATION["evaluation_id"],
        {
            **EVALUATION,
            "spec_sha256": HEX[6],
            "sampler_delta": "0.0000000001",
            "declared_units": 3000,
            "clip_nat": "2.0",
            "noise_multiplier": "4.01",
            "epsilon": "1.0",
            "delta": "0.0000033",
            "epsilon_before": "0.0",
            "epsilon_after": "1.0",
            "cap": "8.0",
            "lifetime_delta": "0.0000033",
            "filter_order": "3.5",
            "counted_by": "distributions",
        },
    ),
    ("budget.stated", RUN, STATED),
    ("budget.stated", RUN, {**STATED, "dataset_id": EVALUATION["dataset_id"], "open": [], "exports": []}),
    ("evaluation.started", EVALUATION["evaluation_id"], {**EVALUATION, "nonce": HEX[8][:32]}),
    (
        "evaluation.settled",
        EVALUATION["evaluation_id"],
        {
            **EVALUATION,
            "epsilon_charged": "0.9981",
            "delta": "0.0000033",
            "declared_units": 3000,
            "comparisons": COMPARISONS,
            "released": [81234, 80112, 4411],
            "public": PUBLIC,
            "isolation": ISOLATION,
            "libraries": LIBRARIES,
        },
    ),
]


_RENDERED: dict[tuple[str, str], dict[str, bytes]] = {}


@dataclass(frozen=True)
class Story:
    """Entries of a ledger, and what they are rendered to."""

    events: tuple[LoggedEvent, ...]

    @property
    def head(self) -> SignedHead:
        size = max(event.index for event in self.events) + 4
        note = f"hospital.example/appliance\n{size}\nroot\n\nsignature\n"
        return SignedHead(origin="hospital.example/appliance", size=size, root=HEX[15], note=note)

    def render(self, run_id: str = RUN) -> dict[str, bytes]:
        """The documents; those of equal stories are drawn once."""
        key = (run_id, repr(self.events))
        if key not in _RENDERED:
            _RENDERED[key] = self.render_anew(run_id)
        return _RENDERED[key]

    def render_anew(self, run_id: str = RUN) -> dict[str, bytes]:
        return documents(run_id, self.events, self.head)

    def only(self, *types: str) -> Story:
        return Story(tuple(event for event in self.events if event.type in types))

    def without(self, *types: str) -> Story:
        return Story(tuple(event for event in self.events if event.type not in types))

    def but(self, type_: str, **facts: Any) -> Story:
        """The same with other facts in the entries of one type."""
        return Story(
            tuple(replace(e, facts={**e.facts, **facts}) if e.type == type_ else e for e in self.events),
        )

    def moved(self, type_: str, index: int) -> Story:
        """The same with the entries of one type at another place in the log."""
        return Story(tuple(replace(e, index=index) if e.type == type_ else e for e in self.events))


def build(entries: Sequence[tuple[str, str | None, dict[str, Any]]]) -> Story:
    events = []
    for place, (type_, subject, facts) in enumerate(entries):
        event(type_, facts)
        events.append(
            LoggedEvent(
                index=11 + 3 * place,
                type=type_,
                time=f"2026-11-24T10:00:{place:02d}.000000Z",
                subject=subject,
                policy_sha256=HEX[5],
                software=dict(SOFTWARE),
                facts=copy.deepcopy(facts),
            )
        )
    return Story(tuple(events))
