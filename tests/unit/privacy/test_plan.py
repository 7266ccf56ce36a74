from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from appliance.errors import ConfigInvalid
from appliance.privacy import sampler
from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.privacy.plan import make_plan
from appliance.privacy.sampler import sampler_delta
from appliance.records import UnitOfPrivacy

ASKED: dict[str, Any] = {
    "unit": UnitOfPrivacy(),
    "declared_units": 1000,
    "expected_batch_size": 500,
    "steps": 10,
    "spare_steps": 1,
    "epsilon": 8.0,
    "delta": None,
    "clipping": "normalised",
    "max_grad_norm": 1.0,
    "trainable_parameters": 500_000,
}


def test_the_plan_states_epsilon_for_all_attempts_beside_the_samplers_delta() -> None:
    plan = make_plan(**ASKED)
    assert plan.delta == 1e-5
    assert (plan.attempts, plan.sample_rate) == (11, Fraction(1, 2))
    mechanism = Mechanism(plan.noise_multiplier, plan.sample_rate, plan.attempts)
    assert 0 < plan.sampler_delta < plan.delta / 2
    assert plan.sampler_delta >= sampler_delta(500_000, 11, 8.0, plan.noise_multiplier)
    assert epsilon_pld([mechanism], plan.delta - plan.sampler_delta) <= 8.0
    assert epsilon_pld([Mechanism(plan.noise_multiplier * 0.998, Fraction(1, 2), 11)], plan.delta) > 8.0


def test_a_costly_sampler_means_more_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_plan(**ASKED)
    monkeypatch.setattr(sampler, "sampler_delta", lambda *_: 4e-6)
    costly = make_plan(**ASKED)
    assert costly.noise_multiplier > plain.noise_multiplier
    mechanism = Mechanism(costly.noise_multiplier, costly.sample_rate, costly.attempts)
    assert epsilon_pld([mechanism], 6e-6) <= 8.0
    monkeypatch.setattr(sampler, "sampler_delta", lambda *_: 6e-6)
    with pytest.raises(ConfigInvalid, match="drawing the noise"):
        make_plan(**ASKED)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"expected_batch_size": 1001}, "train.expected_batch_size"),
        ({"expected_batch_size": 0}, "train.expected_batch_size"),
        ({"declared_units": 0}, "data"),
        ({"steps": 0}, "train.steps"),
        ({"spare_steps": -1}, "train.steps"),
        ({"steps": 10**7}, "train.steps"),
        ({"delta": 1.1e-5}, "privacy.delta"),
        ({"delta": 0.0}, "privacy.delta"),
        ({"delta": math.nan}, "privacy.delta"),
        ({"epsilon": 0.0}, "privacy.epsilon"),
        ({"epsilon": math.inf}, "privacy.epsilon"),
        ({"epsilon": 1e-4}, "privacy.epsilon"),
        ({"max_grad_norm": -1.0}, "privacy"),
        ({"max_grad_norm": math.nan}, "privacy"),
        ({"clipping": "none"}, "privacy"),
        ({"trainable_parameters": 0}, "privacy"),
    ],
)
def test_impossible_plans_are_refused_naming_the_key(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        make_plan(**{**ASKED, **change})
    assert refusal.value.where == where
