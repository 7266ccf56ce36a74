"""What a comparison could find, before it is made: the smallest difference that so many items would show."""

from __future__ import annotations

import math

POWER = 0.8
DISCORDANT = 0.1
"""Share of items on which two models are taken to differ when nothing is known yet."""
_LEVEL, _POWERED = 1.959963984540054, 0.8416212335729143  # of the standard normal, at 97.5 % and at 80 %


def detectable_share(items: int, discordant: float = DISCORDANT) -> float:
    """Say which difference of paired shares is found in four of five comparisons at 5 %.

    Args:
      items: on which both models are tried.
      discordant: share of them that only one of the two gets right; more where fewer would not suffice.

    Returns:
      The difference; 1 where so few items show none.

    >>> round(detectable_share(164), 3), round(detectable_share(500), 3), round(detectable_share(12), 2)
    (0.069, 0.04, 0.54)
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _needed(middle, max(discordant, middle)) > items else (low, middle)
    return high


def _needed(difference: float, discordant: float) -> float:
    """Count the items that a difference needs (Connor 1987)."""
    spread = _LEVEL * math.sqrt(discordant) + _POWERED * math.sqrt(discordant - difference * difference)
    return (spread / difference) ** 2


def detectable_mean(items: int, deviation: float) -> float:
    """Say which mean difference is found so often, given the standard deviation of the differences."""
    return (_LEVEL + _POWERED) * deviation / math.sqrt(items)


def pass_at_k(tries: int, right: int, k: int) -> float:
    """Estimate without bias how often one of k tries is right (Chen et al. 2021).

    >>> round(pass_at_k(10, 3, 1), 4), round(pass_at_k(10, 3, 5), 4)
    (0.3, 0.9167)
    """
    if tries - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / place for place in range(tries - right + 1, tries + 1))
