"""The probabilities are upper bounds: what happens by chance happens no more often than they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from appliance.audit import bounds


@pytest.mark.parametrize("count", [100, 10_000])
def test_products_bound_what_is_seen(count: int) -> None:
    generator = np.random.default_rng(3)
    values = generator.standard_normal((2000, count + 1))
    sums = (values[:, :-1] * values[:, 1:]).sum(1)  # a chain, the dependent case
    p = np.array([bounds.products(float(total), count) for total in sums])
    for level in (0.3, 0.1, 0.01):
        assert (p <= level).mean() <= level
    assert bounds.products(9 * math.sqrt(count), count) < 1e-7
    for share in (0.5, 0.9, 2.0):
        assert bounds.products(share * count, count) < 1e-3


def test_variance_is_two_sided_and_exact() -> None:
    generator = np.random.default_rng(4)
    squares = generator.chisquare(50, 4000)
    p = bounds.variance(squares, np.full(4000, 50.0))
    assert 0.08 < (p <= 0.1).mean() < 0.12
    assert bounds.variance(np.array([0.0]), np.array([64.0]))[0] == 0
    assert bounds.variance(np.array([4e6 * 0.98]), np.array([4e6]))[0] < 1e-30


def test_frequency_bounds_what_is_seen() -> None:
    generator = np.random.default_rng(5)
    p = np.array([bounds.frequency(int(n), 10_000, 0.003) for n in generator.binomial(10_000, 0.003, 3000)])
    for level in (0.3, 0.1, 0.01):
        assert (p <= level).mean() <= level
    assert bounds.frequency(0, 400_000, 6.3e-5) < 1e-10


def test_normality_bounds_what_is_seen() -> None:
    generator = np.random.default_rng(6)
    p = np.array([bounds.normality(generator.standard_normal(500), 0.0) for _ in range(1000)])
    for level in (0.3, 0.1, 0.01):  # the bound is nearly tight: three deviations of the count are left to chance
        assert (p <= level).mean() <= level + 3 * math.sqrt(level / 1000)
    assert bounds.normality(generator.uniform(-(3**0.5), 3**0.5, 100_000), 0.0) < 1e-20


def test_the_upper_limit_of_a_deviation_covers() -> None:
    generator = np.random.default_rng(7)
    limits = np.array([bounds.sd_upper(float(total), 10_000) for total in generator.chisquare(10_000, 20_000)])
    assert limits.min() > 1
    assert limits.max() < 1.1
    assert 1.002 < bounds.sd_upper(2e6, 2_000_000) < 1.0031
    assert bounds.sd_upper(1.0, 10) == math.inf


def test_a_figure_that_is_not_finite_is_recorded_as_words() -> None:
    assert bounds.check("x", math.nan, 1.0, 1, passed=False).value == "not finite"
    assert bounds.check("x", 1e-300, 1.0, 1, passed=False).value == "0.0"
