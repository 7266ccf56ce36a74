"""What `train plan` chooses when only epsilon is set: public, monotone, one promise of compute, inside the policies."""

import pytest

from appliance.flows.run.plan import EPOCHS, PlanRequest, settings
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.policy import policy as policies
from appliance.policy import shipped
from appliance.privacy.plan import make_plan

UNITS = (100, 500, 599, 600, 601, 1_000, 2_400, 10_003, 100_000, 1_000_000)


def planned(units: int, epsilon: float) -> PrivacyPlan:
    chosen = settings(PlanRequest(epsilon=epsilon, name="run"), units)
    train, privacy = chosen["train"], chosen["privacy"]
    return make_plan(
        unit=UnitOfPrivacy(),
        declared_units=units,
        expected_batch_size=train["expected_batch_size"],
        steps=train["steps"],
        spare_steps=train["spare_steps"],
        epsilon=epsilon,
        delta=None,
        clipping=privacy["clipping"],
        max_grad_norm=privacy["max_grad_norm"],
        trainable_parameters=1_000_000,
    )


def test_steps_and_batch_grow_with_the_declared_units_and_cost_the_promised_epochs() -> None:
    """Nothing but epsilon and the declared units goes in, so the data cannot be read out of the settings."""
    chosen = [settings(PlanRequest(epsilon=8.0, name="run"), units)["train"] for units in UNITS]
    for units, train in zip(UNITS, chosen, strict=True):
        visits = train["steps"] * train["expected_batch_size"]
        assert EPOCHS * units <= visits < EPOCHS * units + train["steps"]
        assert 1 <= train["expected_batch_size"] <= units
    for key in ("steps", "expected_batch_size"):
        values = [train[key] for train in chosen]
        assert values == sorted(values)
    # A hundred times the units make the batch several times larger: steps alone would keep the noise in each.
    assert chosen[-1]["expected_batch_size"] > 5 * chosen[-3]["expected_batch_size"]


def test_the_noise_moves_the_weights_no_further_in_a_long_run() -> None:
    """AdamW moves a weight that sees noise alone by rate x sqrt(steps)."""
    chosen = [settings(PlanRequest(epsilon=8.0, name="run"), units)["train"] for units in UNITS]
    moved = [train["lr"] * train["steps"] ** 0.5 for train in chosen]
    assert max(moved) <= moved[0] * (1 + 1e-12)
    rates = [train["lr"] for train in chosen]
    assert rates == sorted(rates, reverse=True)


def test_epsilon_changes_the_noise_and_nothing_else() -> None:
    low, high = (settings(PlanRequest(epsilon=epsilon, name="run"), 2_400) for epsilon in (3.0, 8.0))
    assert low["train"] == high["train"]
    assert low["lora"] == high["lora"]
    assert planned(2_400, 3.0).noise_multiplier > planned(2_400, 8.0).noise_multiplier


def test_the_noise_in_the_mean_gradient_falls_with_the_units() -> None:
    plans = [planned(units, 8.0) for units in (600, 2_400, 10_003, 100_000)]
    ratios = [plan.noise_multiplier / plan.expected_batch_size for plan in plans]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("name", shipped.names())
def test_the_default_plan_is_within_every_shipped_policy(name: str) -> None:
    """At the largest epsilon a policy allows, from its smallest dataset to a large one, the noise is enough."""
    policy = policies.parse(shipped.read(name), name)
    for rules in policy.classes.values():
        if rules.public_data:
            continue
        for units in (rules.min_units, 10_000):
            plan = planned(units, rules.max_epsilon)
            assert plan.noise_multiplier >= rules.min_noise_multiplier
            assert plan.delta <= rules.max_delta


def test_what_the_operator_requestes_is_taken() -> None:
    request = PlanRequest(epsilon=1.0, name="run", steps=3, expected_batch_size=500, lr=0.5, max_tokens=17, rank=2)
    chosen = settings(request, 200)
    train = chosen["train"]
    assert (train["steps"], train["lr"], train["max_tokens"]) == (3, 0.5, 17)
    assert train["expected_batch_size"] == 200  # there are no more
    assert (chosen["lora"]["r"], chosen["privacy"]["epsilon"]) == (2, 1.0)
