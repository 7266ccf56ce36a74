"""The worker's second opinion on epsilon: Opacus' PRV accountant, and RDP to print beside it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from opacus.accountants import PRVAccountant, RDPAccountant

from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.records import PrivacyPlan, PrivacySpent


def spent(plan: PrivacyPlan, attempts: int) -> PrivacySpent:
    """What `attempts` steps of the plan have cost, by three accountants, at the delta left beside the sampler's."""
    mechanism = Mechanism(plan.noise_multiplier, plan.sample_rate, attempts)
    delta = plan.delta - plan.sampler_delta
    return PrivacySpent(
        attempts=attempts,
        epsilon_pld=epsilon_pld([mechanism], delta),
        epsilon_prv=epsilon_prv(plan.noise_multiplier, plan.sample_rate, attempts, delta),
        epsilon_rdp=epsilon_rdp(plan.noise_multiplier, plan.sample_rate, attempts, delta),
        delta=plan.delta,
    )


def epsilon_prv(noise_multiplier: float, sample_rate: Fraction, attempts: int, delta: float) -> float:
    """Epsilon of `attempts` Poisson-sampled Gaussian steps by Opacus' PRV accountant (upper bound of its interval).

    The upper bound adds `eps_error` (0.01 by default) and reads epsilon at a delta that is lower by `delta_error`.
    Both are set so that it lies within `PRV_ALLOWANCE` of a tight accountant.
    """
    return _epsilon(
        PRVAccountant(), noise_multiplier, sample_rate, attempts, delta, eps_error=0.002, delta_error=delta / 1e5
    )


def epsilon_rdp(noise_multiplier: float, sample_rate: Fraction, attempts: int, delta: float) -> float:
    """Epsilon of the same steps by Opacus' RDP accountant."""
    return _epsilon(RDPAccountant(), noise_multiplier, sample_rate, attempts, delta)


def _epsilon(
    accountant: Any, noise_multiplier: float, sample_rate: Fraction, attempts: int, delta: float, **precision: float
) -> float:
    if attempts == 0:
        return 0.0
    accountant.history = [(noise_multiplier, float(sample_rate), attempts)]
    return float(accountant.get_epsilon(delta=delta, **precision))
