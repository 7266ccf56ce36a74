"""From how many tokens a month own machines are cheaper, with an interval, and what it depends on most.

The interval takes every combination of the lowest and highest values that the price file gives. Each quantity only ever
makes own machines dearer or cheaper, so no combination in between lies outside. It is a bound, not a confidence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import product

from appliance.decide.cost import MOST_MACHINES, Chosen, Rates, rates
from appliance.decide.prices import Prices
from appliance.errors import ConfigInvalid

MOST_UNCERTAIN = 12


@dataclass(frozen=True, slots=True)
class Point:
    """Where both cost the same: million tokens a month, how many machines that takes, and how busy those are then."""

    tokens: Decimal
    machines: int
    busy: Decimal


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The break-even point; None where own machines are never cheaper.

    Attributes:
      stated: at the stated values.
      earliest, latest: over all combinations of lowest and highest values.
      swings: for each uncertain quantity alone, the points at its lowest and highest value, the largest swing first.
    """

    stated: Point | None
    earliest: Point | None
    latest: Point | None
    swings: tuple[tuple[str, Point | None, Point | None], ...]


def break_even(prices: Prices) -> BreakEven:
    """Find it. Raises `ConfigInvalid` where too many quantities are uncertain."""
    uncertain = prices.uncertain()
    if len(uncertain) > MOST_UNCERTAIN:
        raise ConfigInvalid(f"{len(uncertain)} quantities have ranges, at most {MOST_UNCERTAIN} may")
    ends = {name: (quantity.low, quantity.high) for name, quantity in uncertain.items()}
    corners = [_at(prices, dict(zip(ends, values, strict=True))) for values in product(*ends.values())]
    swings = [(name, _at(prices, {name: low}), _at(prices, {name: high})) for name, (low, high) in ends.items()]
    return BreakEven(
        stated=_at(prices, {}),
        earliest=min(_found(corners), key=lambda point: point.tokens, default=None),
        latest=None if None in corners else max(_found(corners), key=lambda point: point.tokens, default=None),
        swings=tuple(sorted(swings, key=_swing, reverse=True)),
    )


def _found(points: Iterable[Point | None]) -> list[Point]:
    return [point for point in points if point is not None]


def _swing(one: tuple[str, Point | None, Point | None]) -> Decimal:
    _, low, high = one
    return abs(low.tokens - high.tokens) if low and high else Decimal("Infinity")


def _at(prices: Prices, chosen: Chosen) -> Point | None:
    return point(rates(prices, chosen))


def point(found: Rates) -> Point | None:
    """Find the fewest tokens for which own machines cost no more than the service.

    Machines come whole: with m of them, fixed costs are m machines and the staff, and tokens up to m capacities.
    """
    margin = found.token_price - found.busy
    if margin <= 0:
        return None
    with localcontext() as context:
        context.prec = 50
        for machines in range(1, MOST_MACHINES):
            needed = max(Decimal(0), (machines * found.machine + found.staff - found.fee) / margin)
            if needed <= machines * found.capacity:
                tokens = max(needed, (machines - 1) * found.capacity)
                return Point(tokens, machines, tokens / (machines * found.full))
            if machines * (found.machine - found.capacity * margin) > 0 and found.machine >= found.capacity * margin:
                return None  # each further machine costs more than what it can earn
    return None
