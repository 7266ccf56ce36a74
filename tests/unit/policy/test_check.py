"""Every rule of the policy refuses what breaks it, with the rule's name, and lets the value at its edge pass."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import ApplianceError, ConfigInvalid, PolicyDenied
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.policy import policy, shipped
from appliance.policy.check import DatasetFacts, ModelFacts, check_ingest, check_ingested, check_plan, check_run
from appliance.policy.run_file import BaseChoice, DataChoice, PrivacyChoice, RunFile, TrainChoice

RECORD = UnitOfPrivacy()
DATASET = DatasetFacts(id="ds_1", dataset_class="default", unit=RECORD, declared_units=500)
MODEL = ModelFacts(id="m", sha256="a" * 64)
POLICY = policy.parse(shipped.read("default"), "default.yaml")
HEALTH = policy.parse(shipped.read("health"), "health.yaml")
PLAN: dict[str, Any] = {
    "unit": RECORD,
    "declared_units": 500,
    "expected_batch_size": 50,
    "steps": 10,
    "spare_steps": 1,
    "max_grad_norm": 1.0,
    "clipping": "fixed",
    "noise_multiplier": 0.5,
    "epsilon": 8.0,
    "delta": 2e-5,
    "sampler_delta": 0.0,
}


def run(**privacy: Any) -> RunFile:
    return RunFile(
        name="r",
        base=BaseChoice(id=MODEL.id, sha256=MODEL.sha256),
        data=(DataChoice(id="ds_1", unit=RECORD),),
        train=TrainChoice(steps=5, expected_batch_size=50),
        privacy=PrivacyChoice(**{"epsilon": 8, **privacy}),
    )


def changed(old: str, new: str) -> policy.Policy:
    return policy.parse(shipped.read("default").replace(old.encode(), new.encode()), "changed.yaml")


def test_what_lies_on_the_edge_passes() -> None:
    rules = check_ingest(POLICY, "default", UnitOfPrivacy(kind="subject", key="k", max_records=16), 500)
    assert rules == POLICY.rules()
    check_ingested(POLICY, "default", accepted=950, rejected=50, units=500)
    assert check_run(POLICY, run(delta=2e-5), DATASET, MODEL) == rules
    check_plan(POLICY, DATASET, PrivacyPlan(**PLAN))
    check_run(changed("bases: any", f"bases: [{'a' * 64}]"), run(), DATASET, MODEL)


def denials() -> dict[str, tuple[str, Any]]:
    subject = UnitOfPrivacy(kind="subject", key="k", max_records=17)
    return {
        "class": ("no class", lambda: check_ingest(POLICY, "nope", RECORD, 500)),
        "kind": ("rule unit.kinds", lambda: check_ingest(HEALTH, "default", RECORD, 5000)),
        "cap": ("rule unit.max_records", lambda: check_ingest(POLICY, "default", subject, 500)),
        "units": ("rule min_units", lambda: check_ingest(POLICY, "default", RECORD, 499)),
        "found": ("rule min_units", lambda: check_ingested(POLICY, "default", accepted=499, rejected=0, units=499)),
        "bad": (
            "max_rejected_fraction",
            lambda: check_ingested(POLICY, "default", accepted=949, rejected=51, units=949),
        ),
        "delta": ("rule max_delta", lambda: check_run(POLICY, run(delta=2.1e-5), DATASET, MODEL)),
        "base": (
            "rule bases",
            lambda: check_run(changed("bases: any", f"bases: [{'b' * 64}]"), run(), DATASET, MODEL),
        ),
        "plan delta": ("rule max_delta", lambda: plan(delta=2.1e-5)),
        "plan noise": ("rule min_noise_multiplier", lambda: plan(noise_multiplier=0.49)),
    }


def plan(**changes: Any) -> None:
    check_plan(POLICY, DATASET, PrivacyPlan(**{**PLAN, **changes}))


@pytest.mark.parametrize("name", denials())
def test_denied(name: str) -> None:
    text, attempt = denials()[name]
    with pytest.raises(PolicyDenied) as caught:
        attempt()
    assert text in caught.value.message
    assert "policy " in caught.value.message
    assert caught.value.hint


def test_counts_of_private_rows_are_not_named() -> None:
    with pytest.raises(PolicyDenied) as caught:
        check_ingested(POLICY, "default", accepted=7341, rejected=2659, units=9)
    assert not any(number in str(caught.value) for number in ("7341", "2659", "10000"))


def test_a_run_file_about_something_else() -> None:
    other = DatasetFacts(id="ds_2", dataset_class="default", unit=RECORD, declared_units=500)
    subject = DatasetFacts(
        id="ds_1", dataset_class="default", unit=UnitOfPrivacy(kind="subject", key="k"), declared_units=500
    )
    attempts = [
        lambda: check_run(POLICY, run(), other, MODEL),
        lambda: check_run(POLICY, run(), subject, MODEL),
        lambda: check_run(POLICY, run(), DATASET, ModelFacts(id="m", sha256="c" * 64)),
        lambda: plan(declared_units=600),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigInvalid):
            attempt()
    assert issubclass(ConfigInvalid, ApplianceError)
