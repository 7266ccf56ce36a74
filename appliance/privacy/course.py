"""How epsilon grew over a run, and what its end means for somebody who guesses: for reports, not for the budget."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal

from appliance.jobs.plan import PrivacyPlan
from appliance.privacy.accounting import composition, epsilon_pld

POINTS = 12


def epsilon_curve(plan: PrivacyPlan, attempts: int, points: int = POINTS) -> list[tuple[int, float]]:
    """Compute epsilon by PLD after so many attempts: at most `points` of them, evenly spread, the last one being all.

    It is read at the delta that is left beside the noise sampler's.

    Costs about as much as twelve accounts of the whole: 1 s for 100 attempts, 3 s for 10 000.
    """
    places = sorted({-(-attempts * place // points) for place in range(1, points + 1)} - {0})
    delta = plan.delta - plan.sampler_delta
    return [(place, epsilon_pld(composition(plan, place), delta)) for place in places]


def odds_bound(epsilon: str) -> str:
    """Raise e to epsilon, rounded up: by what factor (epsilon, 0)-DP lets anyone's odds about one unit rise.

    Args:
      epsilon: decimal text, as it is charged.

    Returns:
      A decimal text with three places, never below the exact value.
    """
    exact = Decimal(epsilon).exp(Context(prec=60))
    return str(exact.next_plus(Context(prec=60)).quantize(Decimal("0.001"), ROUND_CEILING, Context(prec=60)))
