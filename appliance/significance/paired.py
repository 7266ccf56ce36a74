"""Two models on the same items: exact McNemar for right and wrong, a bootstrap for scores, and a verdict.

Everything is paired. The interval of a difference of shares is Newcombe's (1998, method 10), that of a mean difference
the bootstrap's percentiles; the verdict follows the exact test for shares and the bootstrap's own p for scores. A
difference that is not significant is "not distinguishable", which is no proof that there is none: how large a
difference would have been found stands beside it (`significance.planning`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
RESAMPLES = 10_000
Verdict = Literal["better", "worse", "not distinguishable"]
_Z = 1.959963984540054  # of the standard normal at 97.5 %
_PIECE = 1 << 22  # draws that exist at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the second model differs from the first.

    Attributes:
      items: on how many both were tried.
      before: mean of the first.
      after: mean of the second.
      change: `after - before`; `low` and `high` bound it at 95 %.
      p: two-sided.
      test: which one.
    """

    items: int
    before: float
    after: float
    change: float
    low: float
    high: float
    p: float
    test: Literal["exact McNemar", "paired bootstrap"]

    @property
    def verdict(self) -> Verdict:
        """What may be said of the second model at 5 %."""
        if self.p >= LEVEL:
            return "not distinguishable"
        return "better" if self.change > 0 else "worse"


def compare_right(before: Sequence[bool], after: Sequence[bool]) -> Difference:
    """Compare which items each model got right.

    >>> compare_right([True] * 6 + [False] * 6, [True] * 12).verdict
    'better'
    """
    one, two = np.array(before, dtype=bool), np.array(after, dtype=bool)
    _require_pairs(one, two)
    lost, gained = int((one & ~two).sum()), int((~one & two).sum())
    low, high = newcombe(int((one & two).sum()), gained, lost, int((~one & ~two).sum()))
    return Difference(
        items=len(one),
        before=float(one.mean()),
        after=float(two.mean()),
        change=(gained - lost) / len(one),
        low=low,
        high=high,
        p=mcnemar(gained, lost),
        test="exact McNemar",
    )


def mcnemar(gained: int, lost: int) -> float:
    """Compute the two-sided exact p of so many items that one model alone got right, and so many the other.

    >>> mcnemar(6, 0), round(mcnemar(7, 1), 3), round(mcnemar(20, 14), 2)
    (0.03125, 0.07, 0.39)
    """
    different = gained + lost
    if not different:
        return 1.0
    tail = sum(math.comb(different, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**different)) if different < 1000 else _large(gained, lost)


def _large(gained: int, lost: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue)


def newcombe(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Bound a difference of paired shares at 95 %: hybrid score interval (Newcombe 1998, method 10)."""
    n = both + gained + lost + neither
    first, second = (both + lost) / n, (both + gained) / n
    (low1, high1), (low2, high2) = _wilson(both + lost, n), _wilson(both + gained, n)
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    excess = float(both * neither - gained * lost)
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    phi = excess / math.sqrt(product) if product else 0.0
    change = second - first

    def side(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return max(-1.0, change - side(second - low2, high1 - first)), min(1.0, change + side(high2 - second, first - low1))


def _wilson(right: int, n: int) -> tuple[float, float]:
    share, square = right / n, _Z * _Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def compare_scores(
    before: Sequence[float], after: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare what each item scored, by resampling items with replacement; the draws are the same for every caller."""
    one, two = np.array(before, dtype=np.float64), np.array(after, dtype=np.float64)
    _require_pairs(one, two)
    each = two - one
    means = _resampled(each, resamples, seed)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    p = 1.0 if not each.any() else min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    return Difference(
        items=len(each),
        before=float(one.mean()),
        after=float(two.mean()),
        change=float(each.mean()),
        low=float(low),
        high=float(high),
        p=p,
        test="paired bootstrap",
    )


def _resampled(each: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Draw means of resampled items, with the spread that a sample of this size has (n over n - 1)."""
    generator, n = np.random.default_rng(seed), len(each)
    step = max(1, _PIECE // n)
    parts = [
        each[generator.integers(0, n, size=(min(step, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    centre = each.mean()
    means: NDArray[np.float64] = centre + (np.concatenate(parts) - centre) * math.sqrt(n / max(1, n - 1))
    return means


def _require_pairs(one: NDArray[np.generic], two: NDArray[np.generic]) -> None:
    if len(one) != len(two) or not len(one):
        raise ValueError("two models are compared on the same items, at least one")
