from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.privacy.accounting import Mechanism, epsilon_pld

SIGMA = st.floats(0.7, 8)
RATE = st.fractions(Fraction(1, 50), 1, max_denominator=200)
ATTEMPTS = st.integers(1, 400)
MECHANISM = st.builds(Mechanism, SIGMA, RATE, ATTEMPTS)
FEW = settings(max_examples=6, deadline=None)


@FEW
@given(SIGMA, RATE, ATTEMPTS, st.integers(1, 300))
def test_more_attempts_cost_more(sigma: float, rate: Fraction, attempts: int, more: int) -> None:
    # Where the discretisation gets finer (at 256, 1024, ... attempts) the bound gets up to 2e-4 tighter.
    longer = epsilon_pld([Mechanism(sigma, rate, attempts + more)], 1e-5)
    assert longer >= epsilon_pld([Mechanism(sigma, rate, attempts)], 1e-5) - 2e-4


@FEW
@given(SIGMA, RATE, RATE, ATTEMPTS)
def test_a_higher_rate_costs_more(sigma: float, one: Fraction, other: Fraction, attempts: int) -> None:
    low, high = sorted([one, other])
    assert epsilon_pld([Mechanism(sigma, low, attempts)], 1e-5) <= epsilon_pld([Mechanism(sigma, high, attempts)], 1e-5)


@FEW
@given(SIGMA, SIGMA, RATE, ATTEMPTS)
def test_less_noise_costs_more(one: float, other: float, rate: Fraction, attempts: int) -> None:
    low, high = sorted([one, other])
    assert epsilon_pld([Mechanism(high, rate, attempts)], 1e-5) <= epsilon_pld([Mechanism(low, rate, attempts)], 1e-5)


@FEW
@given(MECHANISM, st.data())
def test_a_run_split_in_two_costs_what_the_whole_costs(whole: Mechanism, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, whole.attempts))
    parts = [
        Mechanism(whole.noise_multiplier, whole.sample_rate, cut),
        Mechanism(whole.noise_multiplier, whole.sample_rate, whole.attempts - cut),
    ]
    assert epsilon_pld(parts, 1e-5) == epsilon_pld([whole], 1e-5)


@FEW
@given(MECHANISM, ATTEMPTS)
def test_convolving_two_nearly_equal_runs_costs_what_the_merged_run_costs(one: Mechanism, attempts: int) -> None:
    """Merging is a shortcut; here the convolution itself is compared with it."""
    twin = Mechanism(one.noise_multiplier * (1 + 1e-9), one.sample_rate, attempts)
    merged = Mechanism(one.noise_multiplier, one.sample_rate, one.attempts + attempts)
    convolved, whole = epsilon_pld([one, twin], 1e-5), epsilon_pld([merged], 1e-5)
    assert abs(convolved - whole) <= 1.01e-4


@FEW
@given(st.lists(MECHANISM, min_size=1, max_size=4), MECHANISM, st.randoms(use_true_random=False))
def test_composition_is_monotone_subadditive_and_has_no_order(
    mechanisms: list[Mechanism], extra: Mechanism, random: object
) -> None:
    together = epsilon_pld([*mechanisms, extra], 2e-5)
    shuffled = [*mechanisms, extra]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert epsilon_pld(shuffled, 2e-5) == together
    alone = epsilon_pld(mechanisms, 1e-5)
    assert together >= epsilon_pld(mechanisms, 2e-5) - 2e-4
    assert together <= alone + epsilon_pld([extra], 1e-5) + 5e-4
