"""The weighted sum of every option, exactly; and how often each would win if the weights were others."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from appliance.decide.scores import Scores

DRAWS = 10_000
NEAR = 50.0
"""How closely weights are drawn around the stated ones: like shares among so many votes."""


@dataclass(frozen=True, slots=True)
class Share:
    """In which part of the drawn weightings an option wins, with a 95 % interval; a tie counts for nobody."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """An option.

    Attributes:
      total: the weighted sum of its scores, at the stated weights.
      near: how often it wins with weights drawn around the stated ones.
      any: and with weights of which nothing is known.
      asserted: criteria whose scores no entry vouches for.
    """

    name: str
    total: Decimal
    near: Share
    any: Share
    asserted: tuple[str, ...]


def rank(scores: Scores, seed: int = 0, draws: int = DRAWS) -> list[Ranked]:
    """Rank the options, the best first.

    Args:
      scores: the file.
      seed: of the weightings; the same seed draws the same ones.
      draws: how many.
    """
    weights = scores.weights
    table = np.array([[float(option.scores[name].score) for name in weights] for option in scores.options])
    generator = np.random.default_rng(seed)
    stated = np.array([float(weight) for weight in weights.values()])
    near = _wins(table, generator.dirichlet(np.maximum(NEAR * stated, 1e-3), size=draws))
    unknown = _wins(table, generator.dirichlet(np.ones(len(weights)), size=draws))
    found = [
        Ranked(
            name=option.name,
            total=sum((weights[name] * option.scores[name].score for name in weights), Decimal(0)),
            near=_share(int(near[place]), draws),
            any=_share(int(unknown[place]), draws),
            asserted=tuple(name for name in weights if option.scores[name].entry is None),
        )
        for place, option in enumerate(scores.options)
    ]
    return sorted(found, key=lambda one: one.total, reverse=True)


def _wins(table: NDArray[np.float64], weightings: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count for each option (rows of `table`, options × criteria) the weightings (draws × criteria) it wins alone."""
    totals = weightings @ table.T
    best = totals.max(axis=1, keepdims=True)
    winners = totals >= best - 1e-9
    return np.asarray(winners[winners.sum(axis=1) == 1].sum(axis=0), dtype=np.int64)


def _share(wins: int, draws: int) -> Share:
    """Say the share with its interval of Clopper and Pearson: what more draws could still change."""
    from scipy.stats import beta  # a second to import: a mistyped command loads every verb

    low = float(beta.ppf(0.025, wins, draws - wins + 1)) if wins else 0.0
    high = float(beta.ppf(0.975, wins + 1, draws - wins)) if wins < draws else 1.0
    return Share(wins / draws, low, high)
