"""The worker's second opinion on epsilon: Opacus' PRV accountant, and RDP to print beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opacus.accountants import PRVAccountant, RDPAccountant

from appliance.jobs.account import PrivacySpent
from appliance.jobs.plan import PrivacyPlan
from appliance.privacy.accounting import Mechanism, composition, epsilon_pld


def spent(plan: PrivacyPlan, attempts: int) -> PrivacySpent:
    """State what `attempts` steps of the plan cost by three accountants, at the delta left beside the sampler's."""
    mechanisms = composition(plan, attempts)
    delta = plan.delta - plan.sampler_delta
    return PrivacySpent(
        attempts=attempts,
        epsilon_pld=epsilon_pld(mechanisms, delta),
        epsilon_prv=epsilon_prv(mechanisms, delta),
        epsilon_rdp=epsilon_rdp(mechanisms, delta),
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
