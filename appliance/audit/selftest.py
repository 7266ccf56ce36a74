"""The engine self-test: replay (T0), noise (T1), sampling (T3), counts (T4), invariance (T5), and what follows.

The component figure is Acc(sigma_hi / Delta_lo, q_lo, T): the accountant's own formula on the noise that was seen, at
the upper end of its confidence interval, on the largest influence that was seen, and on the sampling rate that was
seen, at the lower end of its interval. It describes the mechanism that ran, if noise is Gaussian and independent and
sampling is Poisson (both tested). How many steps there will be is the plan's word: that each is one release, one noise
vector and one accounted step is counted over the steps that were driven. It is not an attack, and no bound for
mechanisms outside of this family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from appliance.audit import accounting, integers, noise, sampling, units
from appliance.audit.bounds import check, rate_lower, sd_upper
from appliance.audit.loop import Drives
from appliance.audit.replay import Replay
from appliance.audit.sampling import Batches
from appliance.audit.tap import Tap
from appliance.errors import ApplianceError, WillNotFit, ran_out
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.selftest import Check
from appliance.privacy.accounting import LEAST_NOISE, Mechanism, composition, epsilon_pld

LEAST_COMPONENT = 0.97
"""What share of the accounted epsilon the measured noise and influence must at least have: less is another mechanism.

At the plan's rate: how closely a rate can be measured follows from how small it is.
"""

Part = Callable[[], list[Check]]


def examine(tap: Tap, plan: PrivacyPlan) -> list[Check]:
    """Run every check of the self-test on one mechanism; it has passed if all have.

    Args:
      tap: the mechanism. Where its engine's row counts are proved, they are used, and records are held to the last bit.
      plan: what it claims to be.

    Raises:
      WillNotFit: memory does not hold what the self-test needs.
    """
    return [made for _, part in parts(tap, plan) for made in part()]


def parts(tap: Tap, plan: PrivacyPlan) -> Iterator[tuple[str, Part]]:
    """Give the parts of the self-test by name, to be run in this order. The last needs what the others have seen."""
    return _Examination(tap, plan).parts()


class _Examination:
    """One self-test, and what its parts leave for the last one."""

    def __init__(self, tap: Tap, plan: PrivacyPlan) -> None:
        self._tap, self._plan = tap, plan
        self._replay = Replay(tap)
        self._sample: noise.Sample | None = None
        self._batches: list[Batches] = []
        self._drives: Drives | None = None
        self._failed = False

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Give the parts."""
        named: dict[str, Part] = {
            "accounting": lambda: accounting.judge(self._plan),
            "replay": self._replay.run,
            "units": lambda: units.judge(self._tap.narrowed(), self._plan.unit.max_records),
            "noise": self._noise,
            "integers": self._integers,
            "sampler": self._sampler,
            "loop": lambda: self._driven.loop(),
            "invariance": lambda: self._driven.invariance(),
            "resume": lambda: self._driven.resume(),
            "ranks": lambda: self._driven.ranks(),
            "drawn": lambda: sampling.judge("drawn", self._driven.batches) if self._driven.batches else [],
            "component": self._component,
        }
        for name, part in named.items():
            yield name, lambda name=name, part=part: self._guard(name, part)  # type: ignore[misc]

    @property
    def _driven(self) -> Drives:
        self._drives = self._drives or Drives(self._tap, self._plan)
        return self._drives

    def _guard(self, name: str, part: Part) -> list[Check]:
        """Run a part. A mechanism that cannot be driven through it has not passed it."""
        try:
            made = part()
        except WillNotFit:
            raise
        except Exception as fault:
            if ran_out(fault):
                raise
            words = fault.message if isinstance(fault, ApplianceError) else type(fault).__name__
            made = [Check(name=f"{name}.ran", passed=False, value=words, bound="to the end", count=0)]
        self._failed = self._failed or not all(one.passed for one in made)
        return made

    def _noise(self) -> list[Check]:
        self._sample = noise.collect(self._tap)
        return noise.judge(self._sample)

    def _integers(self) -> list[Check]:
        return integers.judge(self._tap, self._sample or noise.collect(self._tap))

    def _sampler(self) -> list[Check]:
        self._batches = sampling.collect(self._tap, self._plan)
        return [*sampling.judge("sampler", self._batches), sampling.entropy(self._tap, self._plan)]

    def _component(self) -> list[Check]:
        if self._failed or self._sample is None:
            return []
        rates = [rate_lower(group.positives, group.coins) for group in self._batches]
        high = sd_upper(*self._sample.measure(self._tap))
        return [component(self._plan, high, self._replay.moved, rates)]


def component(plan: PrivacyPlan, noise_high: float, moved_low: float, rates: Sequence[float] = ()) -> Check:
    """State the measured mechanism's epsilon as a share of the accounted one.

    Args:
      plan: attempts, delta, and the claimed noise multiplier and rates.
      noise_high: upper confidence limit of the noise's standard deviation, as a multiple of the claimed one.
      moved_low: the largest movement of a release by one unit, in units of C.
      rates: lower confidence limits of the sampling rates, one for each phase; without them those of the plan.
    """
    multiplier = plan.noise_multiplier * noise_high / moved_low if moved_low > 0 else 0.0
    if not LEAST_NOISE <= multiplier < 1e4:
        return check("component.epsilon", 0.0, 1.0, 0, passed=False)
    delta = plan.delta - plan.sampler_delta
    accounted, at_the_rates = (
        epsilon_pld(composition(plan, plan.attempts, value), delta) for value in (plan.noise_multiplier, multiplier)
    )
    measured = epsilon_pld(_slowed(plan, multiplier, rates), delta) if rates else at_the_rates
    share, least = (value / accounted if accounted else 1.0 for value in (measured, at_the_rates))
    return check("component.epsilon", share, 1.0, plan.attempts, passed=least >= LEAST_COMPONENT and share <= 1)


def _slowed(plan: PrivacyPlan, multiplier: float, rates: Sequence[float]) -> list[Mechanism]:
    """List the mechanisms of the plan with the measured rate of each phase in place of the claimed one."""
    measured = dict(zip((phase.sample_rate for phase in plan.schedule), rates, strict=True))
    made = composition(plan, plan.attempts, multiplier)
    return [Mechanism(multiplier, Fraction(max(1e-12, measured[m.sample_rate])), m.attempts) for m in made]
