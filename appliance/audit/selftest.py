"""The engine self-test: replay (T0), noise (T1), and the epsilon that follows from what was measured.

The component figure is Acc(sigma_hi / Delta_lo, q, T): the accountant's own formula on the noise that was seen, at
the upper end of its confidence interval, and on the largest influence that was seen. It describes the mechanism that
ran, if noise is Gaussian and independent (tested) and sampling is Poisson at the plan's rate (taken from the plan). It
is not an attack, and no bound for mechanisms outside of this family.
"""

from __future__ import annotations

from appliance.audit import noise
from appliance.audit.bounds import check, sd_upper
from appliance.audit.replay import Replay
from appliance.audit.tap import Tap
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.selftest import Check
from appliance.privacy.accounting import LEAST_NOISE, composition, epsilon_pld

LEAST_COMPONENT = 0.97
"""What share of the accounted epsilon the measured mechanism must at least have: less means it is another one."""


def examine(tap: Tap, plan: PrivacyPlan) -> list[Check]:
    """Run every check of the self-test on one mechanism; it has passed if all have.

    Args:
      tap: the mechanism.
      plan: what it claims to be; only rate, attempts, noise multiplier and delta are read.
    """
    replay = Replay(tap)
    checks = replay.run()
    sample = noise.collect(tap)
    checks += noise.judge(sample)
    if all(made.passed for made in checks):
        checks.append(component(plan, sd_upper(sample.squares, sample.values.size), replay.moved))
    return checks


def component(plan: PrivacyPlan, noise_high: float, moved_low: float) -> Check:
    """State the measured mechanism's epsilon as a share of the accounted one.

    Args:
      plan: rate, attempts, delta and the claimed noise multiplier.
      noise_high: upper confidence limit of the noise's standard deviation, as a multiple of the claimed one.
      moved_low: the largest movement of a release by one unit, in units of C.
    """
    multiplier = plan.noise_multiplier * noise_high / moved_low if moved_low > 0 else 0.0
    if not LEAST_NOISE <= multiplier < 1e4:
        return check("component.epsilon", 0.0, 1.0, 0, passed=False)
    delta = plan.delta - plan.sampler_delta
    accounted, measured = (
        epsilon_pld(composition(plan, plan.attempts, value), delta) for value in (plan.noise_multiplier, multiplier)
    )
    share = measured / accounted if accounted else 1.0
    return check("component.epsilon", share, 1.0, plan.attempts, passed=LEAST_COMPONENT <= share <= 1)
