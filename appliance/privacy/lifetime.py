"""What the spends of a dataset's lifetime come to together.

Two rules compose them, and which of the two speaks is decided by what was fixed before anything had come out:

* what was reserved before the first output was chosen by nobody who had seen one. **Privacy loss distributions**
  compose it, at `FIRST_SHARE` of delta.
* what came later may have been chosen to fit what came before. A **Rényi filter** (`privacy.filter`) has to admit it
  together with everything before, at the order that was fixed when the dataset was sealed: at all of delta where the
  filter would have admitted the first reservations too, at `LATER_SHARE` where it would not.

`docs/dp-pitfalls.md`, part 4, shows that both together are (cap, delta)-differentially private.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.privacy.accounting import PRV_ALLOWANCE, Mechanism, composition, epsilon_pld
from appliance.privacy.filter import allowance, epsilon_at, renyi_loss

UNITS_PER_DELTA = 100
"""Delta is at most 1 / (UNITS_PER_DELTA * declared units): at most 1/100 of a unit is expected to be exposed whole."""

FIRST_SHARE = 0.9
"""Share of a dataset's delta at which what was fixed before the first output is composed; a run takes it by itself."""
LATER_SHARE = 0.099
SAMPLER_SHARE = 0.001
"""Share of delta that all noise samplers together may use up."""

NEVER = math.inf
"""Where in the ledger something stands that has not happened."""

Rule = Literal["distributions", "filter", "mixed units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What one run or evaluation costs: its charged attempts, or its reservation while it is not settled.

    Attributes:
      run_id: the run or evaluation.
      dataset_id: the dataset it spends from.
      unit: whose presence its mechanisms hide.
      mechanisms: noise multiplier, sample rate and attempts of each of its phases.
      reserved: the same of its reservation.
      reserved_at: where the ledger reserves it; `NEVER` for what is only asked for.
      output_at: where the ledger says that something may have come out of it; `NEVER` while nothing can have.
      ended_at: where the ledger ends it; `NEVER` while it can go on.
      epsilon_gap: by how much PRV exceeded PLD when the run was settled; below 0 counts as 0.
      sampler_distance: total variation between what its noise sampler draws and what is accounted for.
    """

    run_id: str
    dataset_id: str
    unit: UnitOfPrivacy
    mechanisms: tuple[Mechanism, ...]
    reserved: tuple[Mechanism, ...]
    reserved_at: float = NEVER
    output_at: float = NEVER
    ended_at: float = NEVER
    epsilon_gap: float = 0.0
    sampler_distance: float = 0.0

    @staticmethod
    def of_plan(run_id: str, dataset_id: str, plan: PrivacyPlan) -> Spend:
        """Ask for a plan: all its attempts, and what PRV may say of them above PLD."""
        reserved = tuple(composition(plan, plan.attempts))
        return Spend(
            run_id=run_id,
            dataset_id=dataset_id,
            unit=plan.unit,
            mechanisms=reserved,
            reserved=reserved,
            epsilon_gap=PRV_ALLOWANCE,
            sampler_distance=sampler_distance(plan.sampler_delta, plan.epsilon),
        )

    @property
    def costs(self) -> bool:
        """Whether it made an attempt, or can still make one."""
        return any(mechanism.attempts for mechanism in self.mechanisms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """The lifetime cap of a dataset: epsilon at delta, the order of its filter, and the unit that it protects."""

    epsilon: float
    delta: float
    order: float
    unit: UnitOfPrivacy


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What spends come to together, at the delta of the cap. `math.inf` where nothing can be shown.

    Attributes:
      epsilon: what is held against the cap: the reading of the rule that decides.
      rule: which rule that is.
      by_distributions: what it would be if all had been fixed before the first output; None where it was left out.
      by_filter: what it is whatever was chosen after what.
      share: the part used of what the filter admits; above 1 it admits nothing more.
    """

    epsilon: float
    rule: Rule
    by_distributions: float | None
    by_filter: float
    share: float


def lifetime_delta(declared_units: int, ceiling: float = 1.0) -> float:
    """State at which delta the lifetime of a dataset is counted.

    Args:
      declared_units: its units of privacy, as its owner declared them.
      ceiling: the largest delta that the policy allows.
    """
    return min(1 / (UNITS_PER_DELTA * declared_units), ceiling)


def run_delta(declared_units: int, ceiling: float = 1.0) -> float:
    """State the delta of a run that names none: what is set aside for what is fixed before the first output."""
    return FIRST_SHARE * lifetime_delta(declared_units, ceiling)


def sampler_distance(sampler_delta: float, epsilon: float) -> float:
    """Find the total variation that costs `sampler_delta` of delta at this epsilon, see `privacy.sampler`."""
    return sampler_delta / (1 + _exp(epsilon))


def same_unit(one: UnitOfPrivacy, other: UnitOfPrivacy) -> bool:
    """Tell whether two units of privacy are the same, so that their losses compose: of one kind, named by one column.

    How many records of a subject were kept does not matter: each run hides the subject with all that its dataset kept.
    """
    return (one.kind, one.key) == (other.kind, other.key)


def lifetime(spends: Iterable[Spend], cap: Cap, *, both: bool = True) -> Spent:
    """Compose all spends that count for one dataset.

    Args:
      spends: in any order; those that made no attempt and no longer can cost nothing.
      cap: of the dataset.
      both: whether to work out the reading by distributions where it does not decide, which takes longest.

    Raises:
      ConfigInvalid: delta is not in (0, 1).
    """
    spends = list(spends)
    costly = [spend for spend in spends if spend.costs]
    if any(not same_unit(spend.unit, cap.unit) for spend in costly):
        return _unbounded("mixed units")
    if (1 + _exp(cap.epsilon)) * math.fsum(s.sampler_distance for s in costly) > SAMPLER_SHARE * cap.delta:
        return _unbounded("filter")
    first = min((spend.output_at for spend in costly), default=NEVER)
    chosen_later = any(spend.reserved_at > first for spend in costly)
    delta = _filter_delta(spends, first, cap)
    loss = _renyi(costly, cap)
    by_filter = epsilon_at(loss, delta, cap.order)
    by_distributions = _compose(costly, cap) if both or not chosen_later else None
    decides: tuple[float, Rule] = by_filter, "filter"
    if by_distributions is not None and not chosen_later and by_distributions <= by_filter:
        decides = by_distributions, "distributions"
    return Spent(
        epsilon=decides[0],
        rule=decides[1],
        by_distributions=by_distributions,
        by_filter=by_filter,
        share=_share(loss, allowance(cap.epsilon, delta, cap.order)),
    )


def _filter_delta(spends: Sequence[Spend], first: float, cap: Cap) -> float:
    """Find the delta of the filter. It follows from what was fixed before the first output, and so from no output."""
    fixed = [spend for spend in spends if spend.reserved_at <= first and (spend.costs or spend.ended_at > first)]
    reserved = renyi_loss([mechanism for spend in fixed for mechanism in spend.reserved], cap.order)
    whole = (1 - SAMPLER_SHARE) * cap.delta
    return whole if reserved <= allowance(cap.epsilon, whole, cap.order) else LATER_SHARE * cap.delta


def _renyi(spends: Sequence[Spend], cap: Cap) -> float:
    return renyi_loss([mechanism for spend in spends for mechanism in spend.mechanisms], cap.order)


def _compose(spends: Sequence[Spend], cap: Cap) -> float:
    together = [mechanism for spend in spends for mechanism in spend.mechanisms]
    gaps = math.fsum(max(0.0, spend.epsilon_gap) for spend in spends)
    return epsilon_pld(together, FIRST_SHARE * cap.delta) + gaps


def _share(loss: float, admitted: float) -> float:
    if admitted > 0:
        return loss / admitted
    return math.inf if loss else 0.0


def _unbounded(rule: Rule) -> Spent:
    return Spent(epsilon=math.inf, rule=rule, by_distributions=None, by_filter=math.inf, share=math.inf)


def _exp(epsilon: float) -> float:
    return math.exp(min(epsilon, 600.0))
