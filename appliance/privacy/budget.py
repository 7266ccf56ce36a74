"""What a dataset may lose over its lifetime. Pure functions: the flows bring the runs, policies set the caps.

A run spends from its own dataset and from every dataset that shares a unit with it. Composition is by privacy loss
distribution over all those runs together, which is less than the sum of their epsilons.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from appliance.errors import BudgetExceeded, ConfigInvalid
from appliance.jobs.plan import PrivacyPlan
from appliance.privacy.accounting import PRV_ALLOWANCE, Mechanism, composition, epsilon_pld


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What one run costs: its charged attempts, or its reservation while it is not settled.

    Attributes:
      run_id: the run.
      dataset_id: the dataset it was trained on.
      mechanisms: noise multiplier, sample rate and attempts of each of its phases.
      epsilon_gap: by how much PRV exceeded PLD when the run was settled; below 0 counts as 0.
      sampler_delta: the part of delta that the run's noise sampler used up.
    """

    run_id: str
    dataset_id: str
    mechanisms: tuple[Mechanism, ...]
    epsilon_gap: float = 0.0
    sampler_delta: float = 0.0

    @staticmethod
    def of_plan(run_id: str, dataset_id: str, plan: PrivacyPlan) -> Spend:
        """Reserve for a plan: all its attempts, and what PRV may say of them above PLD."""
        return Spend(
            run_id=run_id,
            dataset_id=dataset_id,
            mechanisms=tuple(composition(plan, plan.attempts)),
            epsilon_gap=PRV_ALLOWANCE,
            sampler_delta=plan.sampler_delta,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """The lifetime cap of a dataset: epsilon at delta."""

    epsilon: float
    delta: float


def lifetime_epsilon(spends: Iterable[Spend], delta: float) -> float:
    """Compute epsilon at `delta` of all spends together; `math.inf` where their noise samplers alone use up delta.

    Runs that made no attempt cost nothing.

    Raises:
      ConfigInvalid: delta is not in (0, 1).
    """
    costly = [spend for spend in spends if any(mechanism.attempts for mechanism in spend.mechanisms)]
    left = delta - math.fsum(spend.sampler_delta for spend in costly)
    if left <= 0 < delta:
        return math.inf
    together = [mechanism for spend in costly for mechanism in spend.mechanisms]
    return epsilon_pld(together, left) + math.fsum(max(0.0, spend.epsilon_gap) for spend in costly)


def check_budget(
    asked: Spend, *, spends: Iterable[Spend], overlaps: Mapping[str, Collection[str]], caps: Mapping[str, Cap]
) -> tuple[float, float]:
    """Refuse `asked` unless it keeps every dataset it touches within its cap.

    For each X among the run's dataset and those overlapping it, all runs on X and on the datasets overlapping X count.

    Args:
      asked: what the new run would reserve; a spend of the same run among `spends` is replaced by it.
      spends: every run in the ledger.
      overlaps: for each dataset, those that share a unit with it; one direction is enough.
      caps: the cap of every dataset.

    Returns:
      The lifetime epsilon of the run's own dataset before and after.

    Raises:
      BudgetExceeded: names the dataset, what is spent, asked and the cap.
      ConfigInvalid: a dataset concerned has no cap.
    """
    others = [spend for spend in spends if spend.run_id != asked.run_id]
    own: tuple[float, float] | None = None
    for dataset in [asked.dataset_id, *sorted(_neighbours(asked.dataset_id, overlaps) - {asked.dataset_id})]:
        before_after = _check_one(dataset, asked, others, overlaps, caps)
        own = own or before_after
    assert own is not None  # noqa: S101 - the loop begins with the run's own dataset
    return own


def _check_one(
    dataset: str,
    asked: Spend,
    others: list[Spend],
    overlaps: Mapping[str, Collection[str]],
    caps: Mapping[str, Cap],
) -> tuple[float, float]:
    if dataset not in caps:
        raise ConfigInvalid(f"dataset {dataset} has no lifetime budget")
    cap = caps[dataset]
    group = _neighbours(dataset, overlaps)
    earlier = [spend for spend in others if spend.dataset_id in group]
    before = lifetime_epsilon(earlier, cap.delta)
    after = lifetime_epsilon([*earlier, asked], cap.delta)
    if after > cap.epsilon:
        raise BudgetExceeded(
            f"dataset {dataset} has spent epsilon {before:.4f}, this run alone asks "
            f"{lifetime_epsilon([asked], cap.delta):.4f}, together {after:.4f} exceeds the cap {cap.epsilon:g} "
            f"(at delta {cap.delta:.3g})",
            hint="ask for a smaller epsilon or fewer steps, or use a dataset that shares no unit with this one",
        )
    return before, after


def _neighbours(dataset: str, overlaps: Mapping[str, Collection[str]]) -> set[str]:
    """Find the dataset, and all that overlap it by either one's account."""
    return {dataset, *overlaps.get(dataset, ()), *(other for other, theirs in overlaps.items() if dataset in theirs)}
