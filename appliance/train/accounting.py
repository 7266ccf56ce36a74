"""The worker's second opinion on epsilon: Opacus' PRV accountant, and RDP to print beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opacus.accountants import PRVAccountant, RDPAccountant

from appliance.errors import GateFailed
from appliance.jobs.account import PrivacySpent
from appliance.jobs.plan import PrivacyPlan
from appliance.privacy.accounting import Mechanism, composition, epsilon_pld
from appliance.privacy.schedule import Made, read_again, same_steps


def spent(plan: PrivacyPlan, attempts: int, made: Made | None = None) -> PrivacySpent:
    """State what `attempts` steps of the plan cost by three accountants, at the delta left beside the sampler's.

    The first reads the plan in stretches, the others attempt by attempt and as journaled.

    Args:
      plan: what was planned.
      attempts: how many are accounted for.
      made: those that were journaled, with their mechanism.

    Raises:
      GateFailed: the two readings are not of the same steps.
    """
    first, again = composition(plan, attempts), read_again(plan, attempts, made)
    if not same_steps(first, again):
        raise GateFailed("the plan's schedule, or what was journaled of it, reads otherwise the second time")
    delta = plan.delta - plan.sampler_delta
    return PrivacySpent(
        attempts=attempts,
        epsilon_pld=epsilon_pld(first, delta),
        epsilon_prv=epsilon_prv(again, delta),
        epsilon_rdp=epsilon_rdp(again, delta),
        delta=plan.delta,
    )


def epsilon_prv(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Compute epsilon of Poisson-sampled Gaussian steps by Opacus' PRV accountant (upper bound of its interval).

    The upper bound adds `eps_error` (0.01 by default) and reads epsilon at a delta that is lower by `delta_error`.
    Both are set so that it lies within `PRV_ALLOWANCE` of a tight accountant.
    """
    return _epsilon(PRVAccountant(), mechanisms, delta, eps_error=0.002, delta_error=delta / 1e5)


def epsilon_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Compute epsilon of the same steps by Opacus' RDP accountant."""
    return _epsilon(RDPAccountant(), mechanisms, delta)


def _epsilon(accountant: Any, mechanisms: Sequence[Mechanism], delta: float, **precision: float) -> float:
    history = [(m.noise_multiplier, float(m.sample_rate), m.attempts) for m in mechanisms if m.attempts]
    if not history:
        return 0.0
    accountant.history = history
    return float(accountant.get_epsilon(delta=delta, **precision))
