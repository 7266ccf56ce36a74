"""Public sentences about a run: what it has spent so far, and what its guarantee is."""

from __future__ import annotations

import functools
from fractions import Fraction

from appliance.flows.settle import plan_of
from appliance.flows.train import Step
from appliance.ledger.rows import RunRow
from appliance.privacy.accounting import Mechanism, epsilon_pld


def spent_text(step: Step) -> str:
    """For a progress display: epsilon spent by the attempts made so far."""
    plan = step.plan
    spent = _epsilon(plan.noise_multiplier, plan.sample_rate, step.attempts, plan.delta - plan.sampler_delta)
    return f"epsilon {spent:.2f} of {plan.epsilon:g}"


@functools.lru_cache(maxsize=256)
def _epsilon(noise_multiplier: float, sample_rate: Fraction, attempts: int, delta: float) -> float:
    return epsilon_pld([Mechanism(noise_multiplier, sample_rate, attempts)], delta) if attempts else 0.0


def guarantee(row: RunRow) -> str:
    """The guarantee sentence of a settled run: mechanism, unit, relation, epsilon, delta, what, against whom."""
    plan = plan_of(row)
    unit = "one record" if plan.unit.kind == "record" else f"all (at most {plan.unit.max_records}) records of a subject"
    return (
        f"The adapter is ({row.epsilon_charged}, {plan.delta:.3g})-differentially private for adding or removing "
        f"{unit}: {row.charged_attempts} Poisson-sampled Gaussian steps (sample rate {plan.sample_rate}, noise "
        f"multiplier {plan.noise_multiplier:.4f}), against anyone who sees the adapter and every noised step. "
        f"It covers this run's fine-tuning only: not the base model's own training data, and not other runs."
    )
