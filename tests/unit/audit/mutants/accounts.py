"""Faults of the accounting."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from appliance.audit import accounting as audited
from appliance.audit import selftest
from appliance.jobs.plan import PrivacyPlan
from appliance.privacy import accounting
from appliance.privacy.accounting import Mechanism
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.registry import PHASES, Patch, mutant

compose, pld, rates, phase_at = accounting.composition, accounting.epsilon_pld, PrivacyPlan.rates, PrivacyPlan.phase_at


def composed(patch: Patch, change: Callable[[list[Mechanism]], list[Mechanism]]) -> None:
    """Passes every composition through `change`, for all accountants."""
    for module in (audited, selftest, accounting):
        patch.setattr(module, "composition", lambda *given: change(compose(*given)))


def read(patch: Patch, change: Callable[[list[Mechanism], float], float]) -> None:
    """Reads epsilon in another way."""
    for module in (audited, selftest, accounting):
        patch.setattr(module, "epsilon_pld", change)


@mutant("accounting.epsilon")
def an_epsilon_that_the_plan_does_not_have(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(tap, "_plan", tap._plan.model_copy(update={"epsilon": 0.5}))


@mutant("accounting.epsilon")
def spare_steps_are_not_charged(patch: Patch, tap: ReleaseTap) -> None:
    composed(patch, lambda made: [Mechanism(m.noise_multiplier, m.sample_rate, m.attempts // 2) for m in made])


@mutant("accounting.epsilon", PHASES)
def the_last_phase_alone_is_charged(patch: Patch, tap: ReleaseTap) -> None:
    composed(patch, lambda made: made[-1:])


@mutant("accounting.epsilon", PHASES)
def all_phases_at_the_least_rate(patch: Patch, tap: ReleaseTap) -> None:
    def least(made: list[Mechanism]) -> list[Mechanism]:
        return [Mechanism(m.noise_multiplier, min(n.sample_rate for n in made), m.attempts) for m in made]

    composed(patch, least)


@mutant("accounting.epsilon")
def a_noise_multiplier_that_is_a_tenth_high(patch: Patch, tap: ReleaseTap) -> None:
    read(
        patch,
        lambda made, delta: pld([Mechanism(m.noise_multiplier * 1.1, m.sample_rate, m.attempts) for m in made], delta),
    )


@mutant("accounting.epsilon")
def half_the_rate_is_charged(patch: Patch, tap: ReleaseTap) -> None:
    read(
        patch,
        lambda made, delta: pld([Mechanism(m.noise_multiplier, m.sample_rate / 2, m.attempts) for m in made], delta),
    )


@mutant("accounting.epsilon")
def epsilon_is_read_at_ten_times_delta(patch: Patch, tap: ReleaseTap) -> None:
    read(patch, lambda made, delta: pld(made, 10 * delta))


@mutant("accounting.epsilon")
def a_bound_that_is_a_twentieth_low(patch: Patch, tap: ReleaseTap) -> None:
    read(patch, lambda made, delta: 0.95 * pld(made, delta))


@mutant("accounting.schedule", PHASES)
def all_attempts_have_the_rate_of_the_second_phase(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(
        PrivacyPlan, "rates", lambda self, n, after=0: [(self.schedule[-1].sample_rate, n - after)] if n > after else []
    )


@mutant("accounting.schedule")
def rates_leave_out_the_spare_attempts(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(PrivacyPlan, "rates", lambda self, n, after=0: rates(self, min(n, self.steps), after))


@mutant("accounting.schedule", PHASES)
def a_phase_that_begins_an_attempt_late(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(PrivacyPlan, "phase_at", lambda self, n: phase_at(self, n - 1))


@mutant("accounting.schedule", PHASES)
def rates_are_shifted_by_an_attempt(patch: Patch, tap: ReleaseTap) -> None:
    def shifted(self: PrivacyPlan, n: int, after: int = 0) -> list[tuple[Fraction, int]]:
        found = rates(self, n, after)
        if len(found) == 2 and found[1][1] > 1:
            return [(found[0][0], found[0][1] - 1), (found[1][0], found[1][1] + 1)]
        return found

    patch.setattr(PrivacyPlan, "rates", shifted)


@mutant("component.epsilon")
def a_noise_that_is_larger_than_claimed(patch: Patch, tap: ReleaseTap) -> None:
    upper = selftest.sd_upper
    patch.setattr(selftest, "sd_upper", lambda *given: 1.2 * upper(*given))
