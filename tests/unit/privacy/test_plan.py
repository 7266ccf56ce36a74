from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from appliance.errors import ConfigInvalid
from appliance.jobs.plan import Phase, PrivacyPlan, UnitOfPrivacy
from appliance.privacy import sampler
from appliance.privacy.accounting import Mechanism, composition, epsilon_pld
from appliance.privacy.plan import make_plan, share_out
from appliance.privacy.sampler import sampler_delta
from appliance.values import to_json

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
    assert plan.delta == 0.9 * 1e-5  # a tenth of the lifetime's is left for what comes later
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
        ({"max_grad_norm": -1.0}, "privacy.max_grad_norm"),
        ({"max_grad_norm": math.nan}, "privacy.max_grad_norm"),
        ({"max_grad_norm": 1e308}, "privacy.max_grad_norm"),
        ({"max_grad_norm": 1e-300}, "privacy.max_grad_norm"),
        ({"clipping": "none"}, "privacy"),
        ({"trainable_parameters": 0}, "lora.targets"),
    ],
)
def test_impossible_plans_are_refused_naming_the_key(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        make_plan(**{**ASKED, **change})
    assert refusal.value.where == where


def phase(name: str, steps: int, units: int, batch: int) -> Phase:
    return Phase(name=name, steps=steps, declared_units=units, expected_batch_size=batch)


def test_a_curriculum_is_calibrated_over_all_its_phases() -> None:
    phases = [phase("a", 4, 200, 100), phase("b", 6, 1000, 100)]
    plan = make_plan(**ASKED | {"phases": phases})
    assert plan.rates(plan.attempts) == [(Fraction(1, 2), 4), (Fraction(1, 10), 7)]
    delta = plan.delta - plan.sampler_delta
    assert epsilon_pld(composition(plan, 11), delta) <= 8.0
    assert epsilon_pld(composition(plan, 11, plan.noise_multiplier * 0.998), plan.delta) > 8.0 - 0.01
    flat = make_plan(**ASKED | {"expected_batch_size": 100})
    assert plan.noise_multiplier > flat.noise_multiplier


def test_attempts_fill_the_phases_in_order_whatever_was_lost() -> None:
    plan = make_plan(**ASKED | {"phases": [phase("a", 4, 200, 100), phase("b", 6, 1000, 100)]})
    half, tenth = Fraction(1, 2), Fraction(1, 10)
    assert [plan.phase_at(n) for n in (1, 4, 5, 10, 11, 12)] == [0, 0, 1, 1, 1, 1]
    for attempts in range(14):
        expected = [half] * min(4, attempts) + [tenth] * max(0, min(7, attempts - 4)) + [half] * max(0, attempts - 11)
        assert [rate for rate, count in plan.rates(attempts) for _ in range(count)] == expected
        for after in range(attempts + 1):
            assert [r for r, count in plan.rates(attempts, after) for _ in range(count)] == expected[after:]


def test_a_plan_without_a_curriculum_keeps_its_bytes() -> None:
    plan = make_plan(**ASKED)
    assert b"phases" not in to_json(plan)
    assert PrivacyPlan.model_validate_json(to_json(plan)) == plan
    phased = make_plan(**ASKED | {"phases": [phase("a", 10, 1000, 100)]})
    assert PrivacyPlan.model_validate_json(to_json(phased)) == phased


@pytest.mark.parametrize(
    ("ratios", "steps", "shares"),
    [([0.3, 0.5, 0.2], 10, [3, 5, 2]), ([0.9, 0.05, 0.05], 6, [4, 1, 1]), ([1 / 3] * 3, 10, None)],
)  # fmt: skip
def test_shares_of_the_steps_add_up(ratios: list[float], steps: int, shares: list[int] | None) -> None:
    found = share_out(ratios, steps)
    assert sum(found) == steps
    assert min(found) >= 1
    assert shares is None or found == shares


@pytest.mark.parametrize(("ratios", "steps"), [([0.5, 0.4], 10), ([0.5, 0.6], 10), ([0.25] * 4, 3)])
def test_shares_that_cannot_be(ratios: list[float], steps: int) -> None:
    with pytest.raises(ConfigInvalid):
        share_out(ratios, steps)


def test_phases_beyond_the_dataset_are_refused() -> None:
    for wrong in ([phase("a", 9, 1000, 100)], [phase("a", 10, 2000, 100)], [phase("a", 10, 50, 100)]):
        with pytest.raises(ConfigInvalid):
            make_plan(**ASKED | {"phases": wrong})


def test_an_epsilon_that_no_noise_reaches() -> None:
    with pytest.raises(ConfigInvalid, match="no noise multiplier up to 16384 reaches epsilon"):
        make_plan(**ASKED | {"epsilon": 0.01, "delta": 1e-300, "expected_batch_size": 1000})
