"""What other choices would mean for a run that is planned: their noise, what the policy says, what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.errors import BudgetExceeded, ConfigInvalid, PolicyDenied
from appliance.flows.home import Home
from appliance.flows.run.plan import Resolved, afford
from appliance.jobs.plan import PrivacyPlan
from appliance.ledger.reading import LedgerReader
from appliance.policy import check
from appliance.policy.check import DatasetFacts
from appliance.privacy.plan import make_plan

# What docs/utility.md found for each kind of choice.
_FEWER = "seldom better: where steps are few, they hold a model back and not the noise"
_MORE = "seldom better: few large batches beat many small ones"
_LARGER = "better, for twice the time"
_CHEAPER = "a little is lost: 0.04 of the gain from epsilon 8 to 3"
_DEARER = "a little is gained: 0.04 of the gain from epsilon 3 to 8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One choice.

    Attributes:
      plan: what a run would get, noise multiplier included.
      chosen: it is the run's own.
      refused: why policy or budget refuse it; empty if they do not.
      found: what the study of the defaults found for such a choice; empty for the chosen one.
    """

    plan: PrivacyPlan
    chosen: bool
    refused: str
    found: str

    @property
    def noise_per_unit(self) -> float:
        """Standard deviation of the noise, in clip norms, in the mean over an expected batch."""
        return self.plan.noise_multiplier / self.plan.expected_batch_size


def list_alternatives(home: Home, resolved: Resolved) -> list[Alternative]:
    """List half, the same and twice the epsilon, each with other steps and batches. A curriculum has none."""
    if resolved.plan.phases:
        return []
    with home.reader() as ledger:
        looked_at = (_look_at(ledger, resolved, *choice) for choice in _choices(resolved.plan))
        return [alternative for alternative in looked_at if alternative]


def _choices(plan: PrivacyPlan) -> Iterator[tuple[float, int, int, str]]:
    """List (epsilon, steps, batch, what was found): at the same passes over the data, and at twice the batch."""
    steps, batch, units = plan.steps, plan.expected_batch_size, plan.declared_units
    shapes = {
        (steps, batch): "",
        (max(1, steps // 2), min(units, 2 * batch)): _FEWER,
        (2 * steps, max(1, batch // 2)): _MORE,
        (steps, min(units, 2 * batch)): _LARGER,
    }
    shapes[steps, batch] = ""
    for factor, found in ((0.5, _CHEAPER), (1.0, ""), (2.0, _DEARER)):
        for (other_steps, other_batch), about in shapes.items():
            yield plan.epsilon * factor, other_steps, other_batch, "; ".join(filter(None, (about, found)))


def _look_at(
    ledger: LedgerReader, resolved: Resolved, epsilon: float, steps: int, batch: int, found: str
) -> Alternative | None:
    """Make the plan and hold it against policy and budget; None where no noise reaches that epsilon."""
    plan = resolved.plan
    chosen = (epsilon, steps, batch) == (plan.epsilon, plan.steps, plan.expected_batch_size)
    try:
        other = plan if chosen else _make(resolved, epsilon, steps, batch)
    except ConfigInvalid:
        return None
    return Alternative(plan=other, chosen=chosen, refused=_refusal(ledger, resolved, other), found=found)


def _make(resolved: Resolved, epsilon: float, steps: int, batch: int) -> PrivacyPlan:
    plan = resolved.plan
    return make_plan(
        unit=plan.unit,
        declared_units=plan.declared_units,
        expected_batch_size=batch,
        steps=steps,
        spare_steps=plan.spare_steps,
        epsilon=epsilon,
        delta=plan.delta,
        clipping=plan.clipping,
        max_grad_norm=plan.max_grad_norm,
        trainable_parameters=resolved.parameters,
    )


def _refusal(ledger: LedgerReader, resolved: Resolved, plan: PrivacyPlan) -> str:
    dataset = resolved.dataset
    facts = DatasetFacts(
        id=dataset.id, dataset_class=dataset.class_, unit=plan.unit, declared_units=dataset.declared_units
    )
    try:
        check.check_plan(resolved.policy, facts, plan)
        afford(ledger, dataclasses.replace(resolved, plan=plan))
    except (PolicyDenied, BudgetExceeded) as refusal:
        return refusal.message
    return ""
