"""Poisson sampling of the logical batch: each unit of privacy is in it with probability q, independently.

Amplification by sampling needs a secret sample that follows the accounted law exactly, so q stays a fraction and
each unit's coin is exact: the binary expansion of a uniform number in [0, 1) is compared with q 64 bits at a time,
and only a tie (probability 2^-64) needs the next 64 bits. No error is left to charge.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from appliance.train.keystream import Keystream, Words

_WORD = 1 << 64


class PoissonSampler:
    """Draws logical batches of units.

    Args:
      units: how many units there are (private; it never leaves this process).
      sample_rate: the probability q of the plan, exact, in (0, 1].
    """

    def __init__(self, units: int, sample_rate: Fraction) -> None:
        self._units = units
        self._rate = sample_rate

    def draw(self) -> NDArray[np.int64]:
        """Draw the positions of the units of one logical batch, ascending, int64. A fresh key for each call."""
        keystream = Keystream()
        return np.flatnonzero(below(keystream.words(self._units), self._rate, keystream)).astype(np.int64)


def below(words: Words, rate: Fraction, keystream: Keystream) -> NDArray[np.bool_]:
    """Tell whether the uniform numbers that begin with these words are less than `rate`, exactly.

    Args:
      words: uint64 [n], the first 64 bits of each number.
      rate: in [0, 1].
      keystream: where further bits come from on a tie.

    Returns:
      bool [n]; each is true with probability exactly `rate`.
    """
    if rate >= 1:
        return np.ones(len(words), dtype=np.bool_)
    cut, rest = divmod(rate.numerator * _WORD, rate.denominator)
    inside = words < np.uint64(cut)
    ties = np.flatnonzero(words == np.uint64(cut))
    if len(ties) and rest:
        inside[ties] = below(keystream.words(len(ties)), Fraction(rest, rate.denominator), keystream)
    return inside
