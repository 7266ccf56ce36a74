"""Discrete Gaussian noise on the gradient grid, from a cryptographic keystream.

Large parameters are reached by convolution (Micciancio and Walter 2017, "Gaussian Sampling over the Integers",
section 4): X = m X1 + X2, with X1 and X2 discrete Gaussians whose tables fit into a cache. For a given value of X2's
coset the sum over X1 of the product of the two densities is a Gaussian sum over m Z of parameter
c = (m s1) s2 / sqrt((m s1)^2 + s2^2), whose relative dependence on the coset is at most 2 exp(-2 pi^2 (c/m)^2)
(Poisson summation). With c >= 2 m that is below 2^-112, so X is within 2^-111 of a discrete Gaussian of variance
(m s1)^2 + s2^2 in total variation; X1 is drawn the same way when it is still too large for a table.

A table covers 12 standard deviations (tail below 2^-107) and is sampled by Walker's alias method with thresholds of
at least 111 bits: one 64-bit word per draw, a second one only where the first is equal to the threshold's high part.
Three levels reach 10^10 grid units, so the total stays below 2^-96 (`appliance.privacy.sampler.TABLE_TV`) with room.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from appliance.train.keystream import Keystream, Words

Integers = NDArray[np.int64]

_TAIL = 12
_LARGEST = 5461  # 12 * 5461 <= 65535, so a table has at most 2^17 columns
_CHUNK = 1 << 16
_THREADS = 16
_PRECISION = 256  # bits of the fixed-point densities from which a table is made


@dataclass(frozen=True)
class Table:
    """Walker alias table of a discrete Gaussian on [-radius, radius].

    Attributes:
      radius: largest magnitude.
      bits: log2 of the number of columns; a draw spends this many bits on the column, the rest on the coin.
      high: uint64 [2^bits], the first 64 - bits bits of the probability to keep the column.
      low: uint64 [2^bits], its next 64 bits.
      alias: int64 [2^bits], the column taken otherwise.
    """

    radius: int
    bits: int
    high: Words
    low: Words
    alias: Integers

    def lookup(self, words: Words, keystream: Keystream) -> Integers:
        """Look up the draws that these uniform words select, int64 [n]."""
        shift = np.uint64(64 - self.bits)
        column = (words >> shift).astype(np.int64)
        coin = words & np.uint64((1 << (64 - self.bits)) - 1)
        high = self.high[column]
        keep = coin < high
        ties = np.flatnonzero(coin == high)
        if len(ties):
            keep[ties] = keystream.words(len(ties)) < self.low[column[ties]]
        return np.where(keep, column, self.alias[column]) - self.radius


def densities(variance: Fraction) -> list[int]:
    """Tabulate exp(-k^2 / (2 variance)), k = 0..radius, in fixed point of 256 bits, radius = 12 standard deviations."""
    radius = math.isqrt(math.ceil(_TAIL * _TAIL * variance)) + 1
    with localcontext() as context:
        context.prec = 100
        unit = Decimal(2) ** _PRECISION
        ratio = int((Decimal(-variance.denominator) / (2 * Decimal(variance.numerator))).exp() * unit)
    weights, square = [1 << _PRECISION], ratio * ratio >> _PRECISION
    for _ in range(radius):
        weights.append(weights[-1] * ratio >> _PRECISION)
        ratio = ratio * square >> _PRECISION
    return weights


def make_table(variance: Fraction) -> Table:
    """Make the alias table of a discrete Gaussian of this variance parameter; exact integer arithmetic throughout."""
    half = densities(variance)
    radius = len(half) - 1
    bits = (2 * radius).bit_length()
    columns = 1 << bits
    weights = half[:0:-1] + half + [0] * (columns - 2 * radius - 1)
    keep, alias = _vose(weights, columns)
    total, coin_bits = sum(weights), 128 - bits
    full = (1 << coin_bits) - 1  # a full column is its own alias, so the last bit does not matter
    cuts = [min((k << coin_bits) // total, full) for k in keep]
    low_mask = (1 << 64) - 1
    return Table(
        radius=radius,
        bits=bits,
        high=np.array([cut >> 64 for cut in cuts], dtype=np.uint64),
        low=np.array([cut & low_mask for cut in cuts], dtype=np.uint64),
        alias=np.array(alias, dtype=np.int64),
    )


def _vose(weights: list[int], columns: int) -> tuple[list[int], list[int]]:
    # Walker's construction (Vose 1991): every column has area sum(weights), shared between two values at most.
    total = sum(weights)
    keep = [w * columns for w in weights]
    alias = list(range(columns))
    small = [j for j, k in enumerate(keep) if k < total]
    large = [j for j, k in enumerate(keep) if k > total]
    while small:
        taker, giver = small.pop(), large[-1]
        alias[taker] = giver
        keep[giver] -= total - keep[taker]
        if keep[giver] <= total:
            large.pop()
            if keep[giver] < total:
                small.append(giver)
    return keep, alias


def levels(variance: Fraction) -> list[tuple[int, Fraction]]:
    """Find the convolution that reaches `variance`: pairs (multiplier, variance of the table), smallest first.

    sum(multiplier^2 * variance) equals the asked variance exactly.
    """
    if variance <= _LARGEST * _LARGEST:
        return [(1, variance)]
    fine = min(Fraction(_LARGEST * _LARGEST), variance / 2)
    coarse = variance - fine
    multiplier = math.isqrt(math.floor(coarse * fine / variance / 4))
    upper = levels(coarse / multiplier**2)
    return [(1, fine), *((multiplier * m, v) for m, v in upper)]


class DiscreteGaussian:
    """Draws vectors of independent discrete Gaussians over the integers.

    Args:
      variance: the parameter t^2, exact; the law is proportional to exp(-k^2 / (2 t^2)).
      ahead: whether `begin` draws at once, in another thread. It pays where this processor has nothing else to do.
    """

    def __init__(self, variance: Fraction, *, ahead: bool = False) -> None:
        self._levels = [(multiplier, make_table(v)) for multiplier, v in levels(variance)]
        self._ahead = ThreadPoolExecutor(max_workers=1) if ahead else None
        self._begun: tuple[int, Future[Integers]] | None = None

    @property
    def multipliers(self) -> tuple[int, ...]:
        """By what the draws of each level are multiplied before they are added up; 1 for the finest."""
        return tuple(multiplier for multiplier, _ in self._levels)

    def begin(self, count: int) -> None:
        """Begin to draw what the next `draw` of as many values returns, in place of what was begun before."""
        if self._ahead is not None:
            self._begun = count, self._ahead.submit(self._draw, count)

    def draw(self, count: int) -> Integers:
        """Draw `count` fresh values, int64 [count]: those that were begun, which are given away once, or others."""
        begun, self._begun = self._begun, None
        return begun[1].result() if begun is not None and begun[0] == count else self._draw(count)

    def _draw(self, count: int) -> Integers:
        """Draw under new keys for each call, one for each thread of torch's."""
        out = np.zeros(count, dtype=np.int64)
        chunks = [out[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
        threads = max(1, min(torch.get_num_threads(), len(chunks), _THREADS))
        if threads == 1:
            self._fill(chunks)
        else:
            with ThreadPoolExecutor(max_workers=threads) as pool:
                list(pool.map(self._fill, [chunks[first::threads] for first in range(threads)]))
        return out

    def _fill(self, chunks: list[Integers]) -> None:
        """Add a draw to every value, under one key of its own."""
        keystream = Keystream()
        for part in chunks:
            for multiplier, table in self._levels:
                part += multiplier * table.lookup(keystream.words(len(part)), keystream)
