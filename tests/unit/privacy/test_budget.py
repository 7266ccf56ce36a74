"""Who pays for whom, which rule counts, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import time
from fractions import Fraction
from typing import Any

import pytest

from appliance.errors import BudgetExceeded, ConfigInvalid
from appliance.jobs.plan import UnitOfPrivacy
from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.privacy.budget import check_budget
from appliance.privacy.filter import allowance, best_order, epsilon_at, renyi_loss
from appliance.privacy.lifetime import (
    FIRST_SHARE,
    LATER_SHARE,
    NEVER,
    SAMPLER_SHARE,
    Cap,
    Spend,
    lifetime,
    lifetime_delta,
    run_delta,
    sampler_distance,
)

DELTA = 1e-5
RECORD = UnitOfPrivacy()
PATIENT = UnitOfPrivacy(kind="subject", key="patient", max_records=16)
FIRST = FIRST_SHARE * DELTA
WHOLE, LATER = (1 - SAMPLER_SHARE) * DELTA, LATER_SHARE * DELTA


def spend(run: str, dataset: str = "A", attempts: int = 10, sigma: float = 1.5, **more: Any) -> Spend:
    """A run that is asked for, unless it is said where the ledger tells of it."""
    made = (Mechanism(sigma, Fraction(1, 2), attempts),)
    return Spend(**{"run_id": run, "dataset_id": dataset, "unit": RECORD, "mechanisms": made, "reserved": made} | more)


def done(run: str, dataset: str = "A", attempts: int = 10, at: int = 0, **more: Any) -> Spend:
    """A run that the ledger reserves at `at`, starts right after and has ended."""
    return spend(run, dataset, attempts, reserved_at=at, output_at=at + 1, ended_at=at + 2, **more)


def cap(epsilon: float, unit: UnitOfPrivacy = RECORD) -> Cap:
    return Cap(epsilon=epsilon, delta=DELTA, order=best_order(epsilon, DELTA), unit=unit)


def mechanisms(*spends: Spend) -> list[Mechanism]:
    return [mechanism for one in spends for mechanism in one.mechanisms]


ONE = epsilon_pld([*spend("r").mechanisms], FIRST)


# --- which rule counts ------------------------------------------------------------------------------------------------


def test_what_was_fixed_before_the_first_output_is_composed_by_distributions() -> None:
    spends = [spend("r1", epsilon_gap=0.01, reserved_at=0), spend("r2", sigma=2.0, epsilon_gap=-0.5, reserved_at=1)]
    for output_at in (NEVER, 2):  # r1 may have begun, since both were reserved before it did
        begun = [dataclasses.replace(spends[0], output_at=output_at), spends[1]]
        found = lifetime(begun, cap(20.0))
        assert found.rule == "distributions"
        assert found.epsilon == found.by_distributions == epsilon_pld(mechanisms(*spends), FIRST) + 0.01
    assert lifetime([], cap(8.0)).epsilon == 0


def test_what_was_reserved_after_an_output_is_counted_by_the_filter() -> None:
    asked, order = spend("r2", sigma=2.0), cap(20.0).order
    found = lifetime([done("r1"), asked], cap(20.0))
    assert found.rule == "filter"
    assert found.epsilon == epsilon_at(renyi_loss(mechanisms(done("r1"), asked), order), WHOLE, order)
    assert found.epsilon > (found.by_distributions or math.inf)
    assert lifetime([done("r1")], cap(20.0)).rule == "distributions"
    left_out = lifetime([done("r1"), asked], cap(20.0), both=False)
    assert (left_out.epsilon, left_out.by_distributions) == (found.epsilon, None)


def test_a_run_that_began_and_sampled_nothing_is_no_output() -> None:
    idle = done("r0", attempts=0)
    assert lifetime([idle, done("r1", at=5)], cap(20.0)).rule == "distributions"
    assert lifetime([done("r0", attempts=1), done("r1", at=5)], cap(20.0)).rule == "filter"


def test_what_the_ledger_does_not_tell_of_was_chosen_last_and_came_out_first() -> None:
    untold = spend("r1", output_at=-1)
    assert lifetime([untold], cap(20.0)).rule == "filter"


def test_the_filter_has_all_of_delta_only_if_it_would_have_admitted_the_first_reservations() -> None:
    """A first run that only the distributions admitted, ended early: what is left is admitted at a tenth of delta."""
    full, order = cap(8.0), cap(8.0).order
    reserved = (Mechanism(1.25, Fraction(1, 2), 10),)
    assert epsilon_pld(reserved, FIRST) < 8 < epsilon_at(renyi_loss(reserved, order), WHOLE, order)
    early = done("r1", attempts=1, sigma=1.25, reserved=reserved)
    asked = spend("r2", attempts=2)
    loss = renyi_loss(mechanisms(early, asked), order)
    assert lifetime([early, asked], full).epsilon == epsilon_at(loss, LATER, order)
    assert lifetime([early, asked], full).share == pytest.approx(loss / allowance(8.0, LATER, order))
    small = dataclasses.replace(early, reserved=early.mechanisms)
    assert lifetime([small, asked], full).epsilon == epsilon_at(loss, WHOLE, order)


def test_a_reservation_that_was_given_back_before_the_first_output_fixed_nothing() -> None:
    """One that was given back after it could have been begun or not as what was seen suggested."""
    reserved = (Mechanism(1.25, Fraction(1, 2), 10),)
    back = spend("r0", attempts=0, reserved=reserved, reserved_at=0, ended_at=1)
    asked, order = spend("r2", attempts=2), cap(8.0).order
    loss = renyi_loss(mechanisms(done("r1", attempts=1, at=2), asked), order)
    before = lifetime([back, done("r1", attempts=1, at=2), asked], cap(8.0))
    assert before.epsilon == epsilon_at(loss, WHOLE, order)
    after = lifetime([dataclasses.replace(back, ended_at=9), done("r1", attempts=1, at=2), asked], cap(8.0))
    assert after.epsilon == epsilon_at(loss, LATER, order)


def test_shares_of_delta_add_up() -> None:
    assert FIRST_SHARE + LATER_SHARE + SAMPLER_SHARE <= 1
    assert (1 - SAMPLER_SHARE) + SAMPLER_SHARE <= 1


def test_noise_samplers_have_a_share_of_delta_of_their_own_at_the_cap() -> None:
    tau = SAMPLER_SHARE * DELTA / (1 + math.exp(20))
    assert (
        lifetime([spend("r1", sampler_distance=tau / 2), spend("r2", sampler_distance=tau / 2)], cap(20.0)).epsilon < 20
    )
    assert (
        lifetime([spend("r1", sampler_distance=tau), spend("r2", sampler_distance=tau / 99)], cap(20.0)).epsilon
        == math.inf
    )
    assert sampler_distance((1 + math.exp(3)) * 1e-12, 3) == pytest.approx(1e-12)


def test_a_run_without_attempts_costs_nothing() -> None:
    assert lifetime([done("r1", attempts=0, epsilon_gap=1.0, sampler_distance=1.0)], cap(8.0)).epsilon == 0


# --- delta follows the declared units -------------------------------------------------------------------------------


def test_the_lifetime_is_counted_at_a_delta_that_follows_the_units() -> None:
    assert lifetime_delta(50_000) == 2e-7
    assert lifetime_delta(600, 2e-5) == 1 / 60_000
    assert lifetime_delta(100, 2e-5) == 2e-5  # the policy's ceiling stays one
    assert run_delta(50_000) == FIRST_SHARE * 2e-7


# --- caps -----------------------------------------------------------------------------------------------------------


def test_a_run_within_the_cap_passes_and_the_next_does_not() -> None:
    caps = {"A": cap(ONE)}
    before, after = check_budget(spend("r1"), spends=[], overlaps={}, caps=caps)
    assert (before.epsilon, after.epsilon) == (0.0, ONE)
    for earlier in (done("r1"), spend("r1", reserved_at=0)):
        with pytest.raises(BudgetExceeded) as refusal:
            check_budget(spend("r2", attempts=1), spends=[earlier], overlaps={}, caps=caps)
        for part in ("dataset A", f"spent epsilon {ONE:.4f}", f"exceeds the cap {ONE:g}", "at delta 1e-05"):
            assert part in refusal.value.message
        assert ("Rényi filter" in refusal.value.message) == (earlier.output_at < NEVER)


def test_several_small_runs_are_admitted_one_after_the_other() -> None:
    small = [done(f"r{i}", attempts=1, sigma=3.0, at=10 * i) for i in range(6)]
    for i in range(6):
        before, after = check_budget(
            dataclasses.replace(small[i], reserved_at=NEVER), spends=small[:i], overlaps={}, caps={"A": cap(8.0)}
        )
        assert before.epsilon < after.epsilon <= 8
        assert after.share < 1


def test_a_run_is_not_counted_twice_when_it_is_checked_again() -> None:
    _, after = check_budget(spend("r1"), spends=[spend("r1", reserved_at=0)], overlaps={}, caps={"A": cap(ONE)})
    assert after.epsilon == ONE


@pytest.mark.parametrize("overlaps", [{"A": ["B"]}, {"B": ["A"]}])
def test_overlapping_datasets_share_their_budget_whichever_names_the_other(overlaps: dict[str, list[str]]) -> None:
    caps = {"A": cap(ONE), "B": cap(ONE)}
    with pytest.raises(BudgetExceeded):
        check_budget(spend("r2", "B"), spends=[done("r1", "A")], overlaps=overlaps, caps=caps)
    check_budget(spend("r2", "B"), spends=[done("r1", "A")], overlaps={}, caps=caps)


def test_the_middle_of_a_chain_is_protected_though_its_ends_share_nothing() -> None:
    """A and C overlap B only: a run on A is fine for A, but B pays for the runs on A and on C."""
    caps = {name: cap(ONE) for name in "ABC"}
    overlaps = {"B": ["A", "C"]}
    with pytest.raises(BudgetExceeded, match="dataset B"):
        check_budget(spend("r2", "A"), spends=[done("r1", "C")], overlaps=overlaps, caps=caps)
    check_budget(spend("r2", "A"), spends=[done("r1", "C")], overlaps={"B": ["A"]}, caps=caps)


def test_a_dataset_without_a_cap_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        check_budget(spend("r1"), spends=[], overlaps={"A": ["B"]}, caps={"A": cap(9.0)})


# --- units of privacy do not mix -----------------------------------------------------------------------------------


OVERLAP = {"rows": ["people"]}
CAPS = {"rows": cap(50.0), "people": cap(50.0, PATIENT)}


def test_people_who_were_used_per_record_are_not_used_per_subject() -> None:
    """The former rule added 4 for a patient with 16 rows who had lost up to 58."""
    asked = spend("r2", "people", unit=PATIENT)
    with pytest.raises(BudgetExceeded, match="another unit of privacy") as refusal:
        check_budget(asked, spends=[done("r1", "rows")], overlaps=OVERLAP, caps=CAPS)
    assert "go on with dataset rows" in refusal.value.hint
    with pytest.raises(BudgetExceeded, match="another unit of privacy"):
        check_budget(spend("r2", "rows"), spends=[done("r1", "people", unit=PATIENT)], overlaps=OVERLAP, caps=CAPS)
    assert lifetime([done("r1", "rows")], CAPS["people"]).rule == "mixed units"
    assert lifetime([done("r1", "rows")], CAPS["people"]).epsilon == math.inf


@pytest.mark.parametrize("first", ["rows", "people"])
def test_the_dataset_that_was_used_first_goes_on_and_the_other_is_closed(first: str) -> None:
    """Whoever ingested the same people twice by mistake has lost nothing but the second copy."""
    unit = {"rows": RECORD, "people": PATIENT}
    check_budget(spend("r2", first, unit=unit[first]), spends=[], overlaps=OVERLAP, caps=CAPS)
    earlier = [done("r1", first, unit=unit[first])]
    check_budget(spend("r2", first, unit=unit[first]), spends=earlier, overlaps=OVERLAP, caps=CAPS)
    failed = done("r0", next(iter({"rows", "people"} - {first})), attempts=0)
    check_budget(spend("r2", first, unit=unit[first]), spends=[*earlier, failed], overlaps=OVERLAP, caps=CAPS)


def test_what_the_former_rule_mixed_goes_no_further() -> None:
    both = [done("r1", "rows"), done("r2", "people", at=5, unit=PATIENT)]
    for name, unit in (("rows", RECORD), ("people", PATIENT)):
        with pytest.raises(BudgetExceeded, match="another unit of privacy"):
            check_budget(spend("r3", name, unit=unit), spends=both, overlaps=OVERLAP, caps=CAPS)


def test_subjects_of_another_column_are_other_units_and_more_records_of_them_are_not() -> None:
    household = PATIENT.model_copy(update={"key": "household"})
    fewer = PATIENT.model_copy(update={"max_records": 4})
    earlier = [done("r1", "people", unit=PATIENT)]
    for unit, refused in ((household, True), (fewer, False)):
        caps = {"rows": cap(50.0, unit), "people": cap(50.0, PATIENT)}
        asked = spend("r2", "rows", unit=unit)
        if refused:
            with pytest.raises(BudgetExceeded, match="another unit of privacy"):
                check_budget(asked, spends=earlier, overlaps=OVERLAP, caps=caps)
        else:
            before, _ = check_budget(asked, spends=earlier, overlaps=OVERLAP, caps=caps)
            assert before.epsilon > 0


# --- how long it takes ----------------------------------------------------------------------------------------------


def test_twenty_different_runs_are_composed_quickly() -> None:
    spends = [done(f"r{i}", sigma=2 + i / 10, at=10 * i) for i in range(20)]
    lifetime(spends[:1], cap(8.0))
    begin = time.process_time()
    first = lifetime(spends, cap(8.0))
    assert time.process_time() - begin < 5
    assert lifetime(spends, cap(8.0)) == first
    begin = time.process_time()
    lifetime(spends, cap(8.0), both=False)
    assert time.process_time() - begin < 0.1
