"""The noise is the law it claims: exact tables, the convolution, the variance, and fresh keys every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from appliance.errors import ConfigInvalid
from appliance.privacy.sampler import CHI_SQUARE, grid, noise_variance, sampler_delta
from appliance.train import noise
from appliance.train.keystream import Keystream
from appliance.train.noise import DiscreteGaussian, Table, densities, levels, make_table
from appliance.train.sampler import PoissonSampler, below


def exact_law(table: Table) -> dict[int, Fraction]:
    """The law of a table, computed from its integers: what the alias method does with perfect words."""
    law: dict[int, Fraction] = {}
    columns, unit = 1 << table.bits, 1 << (128 - table.bits)
    for j in range(columns):
        keep = Fraction((int(table.high[j]) << 64) + int(table.low[j]), unit)
        for value, share in ((j, keep), (int(table.alias[j]), 1 - keep)):
            law[value - table.radius] = law.get(value - table.radius, Fraction(0)) + share / columns
    return law


def total_variation(a: dict[int, Fraction], b: dict[int, Fraction]) -> Fraction:
    return sum((abs(a.get(k, Fraction(0)) - b.get(k, Fraction(0))) for k in a.keys() | b.keys()), Fraction(0)) / 2


def discrete_gaussian(variance: Fraction, radius: int) -> dict[int, Fraction]:
    import mpmath

    with mpmath.workprec(300):
        weights = {
            k: int(mpmath.exp(-mpmath.mpf(k * k * variance.denominator) / (2 * variance.numerator)) * 2**280)
            for k in range(-radius, radius + 1)
        }
    whole = sum(weights.values())
    return {k: Fraction(w, whole) for k, w in weights.items()}


@pytest.mark.parametrize("variance", [Fraction(9, 4), Fraction(400), Fraction(10**6 + 1, 37)])
def test_a_table_is_a_discrete_gaussian_to_2_to_the_minus_100(variance: Fraction) -> None:
    table = make_table(variance)
    wide = discrete_gaussian(variance, 14 * (math.isqrt(math.ceil(variance)) + 1))
    assert total_variation(exact_law(table), wide) < Fraction(1, 2**100)


def test_a_table_with_double_precision_densities_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(variance: Fraction) -> list[int]:
        return [int(math.exp(-k * k / (2 * variance)) * 2**53) << 203 for k in range(40)]

    monkeypatch.setattr(noise, "densities", coarse)
    table = make_table(Fraction(9, 4))
    assert total_variation(exact_law(table), discrete_gaussian(Fraction(9, 4), 40)) > Fraction(1, 2**60)


def test_convolution_is_a_discrete_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same construction with small tables, summed exactly: 2 levels reach a parameter no single table holds.
    monkeypatch.setattr(noise, "_LARGEST", 20)
    variance = Fraction(120) ** 2 + Fraction(1, 12)
    parts = levels(variance)
    assert len(parts) == 2
    assert sum(m * m * v for m, v in parts) == variance
    (fine_by, fine), (by, coarse) = ((m, exact_law(make_table(v))) for m, v in parts)
    law: dict[int, Fraction] = {}
    for x, p in coarse.items():
        for y, q in fine.items():
            law[by * x + fine_by * y] = law.get(by * x + fine_by * y, Fraction(0)) + p * q
    assert total_variation(law, discrete_gaussian(variance, 14 * 120)) < Fraction(1, 2**97)


def test_a_multiplier_above_the_smoothing_parameter_would_be_found() -> None:
    coarse, fine, by = exact_law(make_table(Fraction(16))), exact_law(make_table(Fraction(4))), 4
    law: dict[int, Fraction] = {}
    for x, p in coarse.items():
        for y, q in fine.items():
            law[by * x + y] = law.get(by * x + y, Fraction(0)) + p * q
    assert total_variation(law, discrete_gaussian(Fraction(16 * 16 + 4), 240)) > Fraction(1, 2**20)


@settings(max_examples=60, deadline=None)
@given(st.fractions(min_value=1, max_value=10**20))
def test_levels_add_up_and_stay_smooth(variance: Fraction) -> None:
    parts = levels(variance)
    assert sum(m * m * v for m, v in parts) == variance
    assert all(v <= 5461**2 for _, v in parts)
    rest = variance
    for (_, fine), (above, _) in pairwise(parts):
        by = above // next(m for m, v in parts if v is fine)
        coarse = rest - fine
        assert coarse * fine / rest >= 4 * by * by  # (parameter of the coset sum / multiplier)^2 >= 2^2
        rest = coarse / by**2


def test_ties_take_further_bits() -> None:
    table = make_table(Fraction(9, 4))
    column = int(np.flatnonzero(table.alias != np.arange(1 << table.bits))[0])
    word = np.array([(column << (64 - table.bits)) + int(table.high[column])], dtype=np.uint64)

    class Next(Keystream):
        def __init__(self, value: int) -> None:
            self.value = value

        def words(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
            return np.full(count, self.value, dtype=np.uint64)

    low = int(table.low[column])
    assert table.lookup(word, Next(low - 1))[0] == column - table.radius
    assert table.lookup(word, Next(low))[0] == table.alias[column] - table.radius


@pytest.mark.usefixtures("fixed_keys")
def test_drawn_noise_has_the_law_of_the_plan(stress_count: Callable[[int, int], int]) -> None:
    count = stress_count(400_000, 20_000_000)
    variance = noise_variance(0.8, 0.3, 2_442_240)
    drawn = DiscreteGaussian(variance).draw(count)
    scaled = drawn / math.sqrt(variance)
    assert abs(scaled.std() - 1) < 5 / math.sqrt(2 * count)
    assert abs(scaled.mean()) < 5 / math.sqrt(count)
    assert stats.kstest(scaled, "norm").pvalue > 1e-6
    # Low bits: the grid is much finer than the noise, so every residue is equally frequent.
    assert stats.chisquare(np.bincount(drawn % 64, minlength=64)).pvalue > 1e-6
    assert abs(np.corrcoef(scaled[:-1], scaled[1:])[0, 1]) < 6 / math.sqrt(count)


@pytest.mark.usefixtures("fixed_keys")
def test_small_law_by_chi_square() -> None:
    variance = Fraction(9)
    drawn = DiscreteGaussian(variance).draw(200_000)
    law = discrete_gaussian(variance, 12)
    expected = np.array([float(p) for p in law.values()]) * len(drawn)
    seen = np.array([(drawn == k).sum() for k in law])
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-6


def test_two_draws_differ_and_no_seed_exists() -> None:
    source = DiscreteGaussian(Fraction(10**6))
    assert not np.array_equal(source.draw(64), source.draw(64))
    assert not np.array_equal(Keystream().words(4), Keystream().words(4))
    with pytest.raises(TypeError):
        Keystream(7)  # type: ignore[call-arg]


def test_what_was_begun_is_given_away_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, plain = list[noise.Integers](), DiscreteGaussian._draw

    def kept(self: DiscreteGaussian, count: int) -> noise.Integers:
        drawn = plain(self, count)
        made.append(drawn)  # two threads do
        return drawn

    monkeypatch.setattr(DiscreteGaussian, "_draw", kept)
    source = DiscreteGaussian(Fraction(10**6), ahead=True)
    source.begin(64)
    drawn = [source.draw(64), source.draw(64)]
    assert [one is other for one, other in zip(made, drawn, strict=True)] == [True, True]
    assert not np.array_equal(*drawn)
    source.begin(64)
    assert len(source.draw(65)) == 65
    assert source._ahead
    source._ahead.submit(int).result()  # what was begun is made, too
    assert source.draw(64) is made[-1], "what was begun for another vector is given away"
    source.begin(64)
    source.begin(64)
    assert source.draw(64) is made[-1]
    assert len({values.tobytes() for values in made}) == len(made) == 7


def test_begun_without_ahead_nothing_is_drawn_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DiscreteGaussian(Fraction(10**6))
    monkeypatch.setattr(DiscreteGaussian, "_draw", lambda *_: pytest.fail("drawn"))
    source.begin(64)


def test_what_fails_in_the_other_thread_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: DiscreteGaussian, count: int) -> None:
        raise MemoryError

    source = DiscreteGaussian(Fraction(10**6), ahead=True)
    monkeypatch.setattr(DiscreteGaussian, "_draw", fail)
    source.begin(64)
    with pytest.raises(MemoryError):
        source.draw(64)


def test_densities_are_gaussian() -> None:
    weights = densities(Fraction(100))
    assert weights[0] == 1 << 256
    assert weights[10] / weights[0] == pytest.approx(math.exp(-0.5), rel=1e-15)


# --- the divergence of the rounded continuous Gaussian, and what is charged for it ----------------------------------


@pytest.mark.parametrize("s", [4, 8, 16])
def test_the_stated_divergence_bounds_the_exact_one(s: int) -> None:
    import mpmath

    with mpmath.workprec(400):
        t2 = mpmath.mpf(s * s) + mpmath.mpf(1) / 12
        span = range(-14 * s, 14 * s + 1)
        weights = {k: mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * t2)) for k in span}
        whole = mpmath.fsum(weights.values())

        def rounded(k: int) -> mpmath.mpf:
            return (mpmath.erf((k + 0.5) / (s * mpmath.sqrt(2))) - mpmath.erf((k - 0.5) / (s * mpmath.sqrt(2)))) / 2

        chi = mpmath.fsum((rounded(k) - w / whole) ** 2 / (w / whole) for k, w in weights.items())
        scaled = float(chi * mpmath.mpf(s) ** 8)
    assert 2.5e-6 < scaled < 2.9e-6 < CHI_SQUARE


def test_without_the_twelfth_the_divergence_is_of_fourth_order() -> None:
    s = 8
    span = np.arange(-14 * s, 14 * s + 1)
    law = np.exp(-(span**2) / (2 * s * s))
    law /= law.sum()
    rounded = stats.norm.cdf((span + 0.5) / s) - stats.norm.cdf((span - 0.5) / s)
    assert float(((rounded - law) ** 2 / law).sum()) * s**4 == pytest.approx(1 / 288, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.floats(min_value=2.0**-20, max_value=2.0**20), st.integers(min_value=1, max_value=10**10))
def test_the_grid_is_the_largest_power_of_two_that_fits(norm: float, parameters: int) -> None:
    gamma = Fraction(grid(norm, parameters))
    bound = (Fraction(norm) / 2**13) ** 2 / parameters
    assert gamma**2 <= bound < (2 * gamma) ** 2
    assert math.log2(gamma) == int(math.log2(gamma))


def test_sampler_delta() -> None:
    assert sampler_delta(2_442_240, 1000, 8.0, 0.5) < 1e-13
    assert sampler_delta(2_442_240, 1000, 8.0, 0.5) > sampler_delta(2_442_240, 10, 8.0, 0.5)
    assert sampler_delta(1000, 10, 1e4, 1.0) == 1.0
    with pytest.raises(ConfigInvalid):
        sampler_delta(1, 10, 8.0, 1e-6)
    with pytest.raises(ConfigInvalid):
        grid(2.0**-30, 1000)
    with pytest.raises(ConfigInvalid):
        grid(1.0, 0)


# --- Poisson sampling -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fixed_keys")
def test_batch_sizes_follow_the_sample_rate() -> None:
    sampler = PoissonSampler(500, Fraction(3, 50))
    sizes = [len(sampler.draw()) for _ in range(400)]
    expected = stats.binom(500, 0.06)
    assert abs(np.mean(sizes) - expected.mean()) < 5 * expected.std() / 20
    edges = [-1, 25, 28, 30, 33, 500]
    seen = np.histogram(sizes, bins=[e + 0.5 for e in edges])[0]
    assert stats.chisquare(seen, np.diff(expected.cdf(edges)) * len(sizes)).pvalue > 1e-6
    assert 0.75 < np.var(sizes) / expected.var() < 1.3


@pytest.mark.usefixtures("fixed_keys")
def test_every_unit_is_sampled_alike() -> None:
    sampler = PoissonSampler(40, Fraction(1, 4))
    counts = np.zeros(40)
    for _ in range(2000):
        counts[sampler.draw()] += 1
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(32, 49999), Fraction(2**64 - 1, 2**64)])
def test_the_coin_is_exact_at_its_edge(rate: Fraction) -> None:
    cut, rest = divmod(rate.numerator << 64, rate.denominator)

    class Next(Keystream):
        def __init__(self, value: int) -> None:
            self.value = value

        def words(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
            return np.full(count, self.value, dtype=np.uint64)

    words = np.array([cut - 1, cut, min(cut + 1, 2**64 - 1)], dtype=np.uint64)
    assert below(words, rate, Next(0)).tolist()[:2] == [True, rest > 0]
    assert below(words, rate, Next(2**64 - 1)).tolist()[1:] == [False, False]


def test_rate_one_takes_everyone_and_no_unit_is_fine() -> None:
    assert PoissonSampler(7, Fraction(1)).draw().tolist() == list(range(7))
    assert PoissonSampler(0, Fraction(1, 2)).draw().tolist() == []


def test_two_samples_differ() -> None:
    sampler = PoissonSampler(300, Fraction(1, 2))
    assert sampler.draw().tolist() != sampler.draw().tolist()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads", "fixed_keys")
def test_threads_fill_every_part_once_each_under_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(Keystream):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(noise, "Keystream", Counted)
    deviation = 10**6
    drawn = DiscreteGaussian(Fraction(deviation**2)).draw(7 * noise._CHUNK + 17)
    assert len(made) == 3
    parts = [drawn[start : start + noise._CHUNK] for start in range(0, len(drawn), noise._CHUNK)]
    assert len({part[:17].tobytes() for part in parts}) == len(parts) == 8
    for part in parts[:-1]:  # filled twice it would be wider by a factor of sqrt(2), never filled it is zero
        assert abs(part.std() / deviation - 1) < 0.02
    assert stats.kstest(drawn / deviation, "norm").pvalue > 1e-6
