"""Public sentences about a run: what it has spent so far, and what its guarantee is."""

from __future__ import annotations

import functools

from appliance.flows.catalog import plan_of
from appliance.flows.run.following import Step
from appliance.jobs.plan import PrivacyPlan, UnitKind, UnitOfPrivacy
from appliance.ledger.rows import RunRow
from appliance.privacy.accounting import composition, epsilon_pld
from appliance.values import to_json


def spent_text(step: Step) -> str:
    """Say for a progress display what epsilon the attempts made so far have spent."""
    plan = step.plan
    spent = _epsilon(to_json(plan), step.attempts)
    return f"epsilon {spent:.2f} of {plan.epsilon:g}"


@functools.lru_cache(maxsize=256)
def _epsilon(encoded: bytes, attempts: int) -> float:
    plan = PrivacyPlan.model_validate_json(encoded)
    return epsilon_pld(composition(plan, attempts), plan.delta - plan.sampler_delta) if attempts else 0.0


def sampling(plan: PrivacyPlan) -> str:
    """Say in words at what rate a plan samples, for every phase where it has several."""
    if not plan.phases:
        return f"sample rate {plan.sample_rate}"
    rates = ", ".join(f"{phase.sample_rate} in phase {phase.name}" for phase in plan.phases)
    return f"sample rate {rates}"


def unit_words(unit: UnitOfPrivacy) -> str:
    """Say in words whose presence is hidden."""
    split = f"plain text, split by {unit.split}" if unit.split else ""
    if unit.kind == UnitKind.RECORD:
        return f"one record{f' ({split})' if split else ''}"
    return f"all (at most {unit.max_records}) records of a subject{f' ({split})' if split else ''}"


def guarantee(row: RunRow) -> str:
    """Write the guarantee sentence of a settled run: mechanism, unit, relation, epsilon, delta, what, against whom."""
    plan = plan_of(row)
    return (
        f"The adapter is ({row.epsilon_charged}, {plan.delta:.3g})-differentially private for adding or removing "
        f"{unit_words(plan.unit)}: {row.charged_attempts} Poisson-sampled Gaussian steps ({sampling(plan)}, noise "
        f"multiplier {plan.noise_multiplier:.4f}), against anyone who sees the adapter and every noised step. "
        f"It covers this run's fine-tuning only: not the base model's own training data, and not other runs."
    )
