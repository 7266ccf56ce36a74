"""Weighted scores: one scale, exact sums, weightings that are drawn, and evidence that is there."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from appliance.decide.ranking import rank
from appliance.decide.scores import Scores, read
from appliance.errors import ConfigInvalid
from appliance.flows import decision

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
EXAMPLE = (EXAMPLES / "scores.yaml").read_text()


def scores(old: str = "", new: str = "") -> Scores:
    return read((EXAMPLE.replace(old, new, 1) if old else EXAMPLE).encode(), "scores.yaml")


def test_the_example_by_hand() -> None:
    first, second = rank(scores())
    assert (first.name, first.total) == ("own machines, this appliance", Decimal("4.15"))
    assert second.total == Decimal("2.80")
    assert first.near.share + second.near.share == pytest.approx(1.0)
    assert first.any.low < first.any.share < first.any.high
    assert first.asserted == ("confidentiality", "quality", "cost", "latency", "effort")


def test_the_same_seed_draws_the_same_and_twice_the_same_wins_never() -> None:
    assert rank(scores(), 3) == rank(scores(), 3)
    assert rank(scores(), 3) != rank(scores(), 4)
    same = read(
        b"schema: 1\nscale: {low: 0, high: 1}\nweights: {a: 1.0}\noptions:\n"
        b"  - {name: x, scores: {a: {score: 1}}}\n  - {name: y, scores: {a: {score: 1}}}\n",
        "same.yaml",
    )
    assert [one.any.share for one in rank(same)] == [0.0, 0.0]


def test_the_share_is_what_geometry_says() -> None:
    """Two criteria, uniform weights: x wins where w > 1/3 of 2w against 1 - w, so in two thirds of all weightings."""
    two = read(
        b"schema: 1\nscale: {low: 0, high: 2}\nweights: {a: 0.5, b: 0.5}\noptions:\n"
        b"  - {name: x, scores: {a: {score: 2}, b: {score: 0}}}\n"
        b"  - {name: y, scores: {a: {score: 0}, b: {score: 1}}}\n",
        "two.yaml",
    )
    best = next(one for one in rank(two) if one.name == "x")
    assert best.any.low <= 2 / 3 <= best.any.high


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("score: 5}", 'score: "★★★★★"}', "5 stars are no number"),
        ("score: 5}", 'score: "★★☆"}', "3 stars are no number"),
        ("score: 5}", "score: 9}", "outside the scale 1 to 5"),
        ("score: 5}", "score: 4, scale: 3}", "unknown key"),
        ("score: 5}", "score: high}", "must be a number on the scale"),
        ("score: 5}", "score: true}", "must be a number on the scale"),
        ("score: 5}", "score: 5, entry: 7}", "an entry and its type"),
        ("scale: {low: 1, high: 5}", "scale: {low: 5, high: 1}", "not below"),
        ("cost: 0.2,", "cost: 0.3,", "the weights sum to 1.1"),
        ("cost: 0.2,", "cost: -0.2,", "negative"),
        ("      effort: {score: 5}\n", "", "not of the same criteria: effort"),
        ("own machines, this appliance", "a service, paid by the token", "two options have one name"),
    ],
)
def test_what_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        scores(old, new)
    assert said in refused.value.message


def test_the_seeds_table_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="stars are no number"):
        decision.score(EXAMPLES / "seed-scores.yaml", None, 0)
