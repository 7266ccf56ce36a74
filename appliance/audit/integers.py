"""T1, noise as whole numbers: its last digits, its repetitions, how far it reaches and where it comes from.

A Gaussian test sees a value to a ten thousandth of its deviation. What is below that decides whether `sum + noise`
hides the sum: noise that is always even, or a multiple of 2730 because one level of its composition is missing, shows
the sum's last digits to everybody. Modulo any number that is small against the deviation, a discrete Gaussian is
uniform, but for exp(-2 pi^2 (deviation / modulus)^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from appliance.audit.bounds import by_chance, check, frequencies, frequency, hoeffding, uniformity
from appliance.audit.noise import Sample, deviation_of
from appliance.audit.tap import Integers, Tap, Words
from appliance.jobs.selftest import Check

_MODULI = (2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 32, 64, 128, 256, 1024)
_BINS = 1024
_WIDE = 1.5  # deviations of the noise that a modulus may at most be wide, inversely
_SHIFTED = 1 << 18
_REPEATED = 1 << 19
_DRAWS, _SHORT = 512, 64
_LONG = 9  # draws of all parameters, those of the releases included: where there are millions, releases are few
_SCRIPTED = 1 << 14
_REACH = 9.0
_KEY_BITS = 256


def judge(tap: Tap, sample: Sample) -> list[Check]:
    """Run all checks of whole numbers."""
    return [
        _lattice(sample),
        _residues(sample, tap.multipliers),
        _chains(sample, tap.multipliers),
        _repeats(sample),
        _draws(tap, sample),
        _reach(tap),
        _entropy(tap),
    ]


def _lattice(sample: Sample) -> Check:
    """Look for a common divisor of how the values at one place differ from release to release, in each tensor.

    That n differences are all divisible by any one prime has probability below 2^(1 - n).
    """
    differences = sample.digits[1:] - sample.digits[0]
    starts = np.searchsorted(sample.places, [start for _, start, _ in sample.tensors])
    divisors = np.gcd.reduceat(np.gcd.reduce(differences, axis=0), starts)
    sizes = np.diff([*starts, len(sample.places)]) * len(differences)
    p = np.where(divisors == 1, 1.0, 2.0 ** (1.0 - sizes))
    return by_chance("noise.lattice", float(p.min()), len(p))


def _residues(sample: Sample, multipliers: tuple[int, ...]) -> Check:
    """Test the values modulo small numbers and every multiplier: each residue or range of them, and all together."""
    flat = sample.digits.reshape(-1)
    found, looked_at = [1.0], 1
    for modulus in _usable(sample, multipliers):
        residues = np.mod(flat, modulus)
        bins = min(modulus, _BINS)
        edges = -(-np.arange(bins + 1) * modulus // bins)
        counts = np.bincount(residues * bins // modulus, minlength=bins)
        found.append(float(frequencies(counts, flat.size, np.diff(edges) / modulus).min()))
        found.append(uniformity((residues + 0.5) / modulus, 0.5 / modulus))
        looked_at += bins + 1
    return by_chance("noise.residues", min(found), looked_at)


def _chains(sample: Sample, multipliers: tuple[int, ...]) -> Check:
    """Test the residues of one release against themselves at every distance: one level could start again alone."""
    moduli = [m for m in _usable(sample, multipliers) if m in (2, *multipliers)]
    found, looked_at = [1.0], 1
    flat = sample.digits.reshape(-1)[:_SHIFTED]
    length = 1 << (2 * flat.size - 1).bit_length()
    for modulus in moduli:
        centred = (np.mod(flat, modulus) + 0.5) / modulus - 0.5
        spectrum = np.fft.rfft(centred, length)
        lags = np.fft.irfft(np.abs(spectrum) ** 2, length)[1 : flat.size]
        found.append(hoeffding(float(np.abs(lags).max()), flat.size, 0.25))
        looked_at += len(lags)
    return by_chance("noise.chains", min(found), looked_at)


def _usable(sample: Sample, multipliers: tuple[int, ...]) -> list[int]:
    chosen = {m for m in (*_MODULI, *multipliers) if m > 1 and m * _WIDE <= sample.deviation}
    return sorted(chosen)


def _repeats(sample: Sample) -> Check:
    """Count how many magnitudes of the second half stood in the first half too: noise could come from a pool."""
    flat = np.abs(sample.digits.reshape(-1)[: 2 * _REPEATED])
    first, second = np.sort(flat[: flat.size // 2]), flat[flat.size // 2 :]
    first = first[np.diff(first, prepend=-1) > 0]
    deviation = sample.deviation
    density = np.exp(-0.5 * (first / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    rate = min(1.0, float(np.where(first > 0, 2 * density, density).sum()))
    seen = int((first[np.searchsorted(first, second).clip(max=len(first) - 1)] == second).sum())
    return by_chance("noise.repeats", frequency(seen, second.size, rate), 1)


def _draws(tap: Tap, sample: Sample) -> Check:
    """Draw many short vectors and some long ones: none may begin as another, in whole or but for signs.

    Two beginnings of 64 values agree with probability below 2^-64 where the deviation is above 1.
    """
    drawn = [tap.draw(_SHORT) for _ in range(_DRAWS)]
    drawn += [tap.draw() for _ in range(_LONG - len(sample.digits))]
    lengths = [len(vector) for vector in drawn]
    whole = lengths == [_SHORT] * _DRAWS + [tap.parameters] * (len(drawn) - _DRAWS)
    begun = [*drawn, *sample.digits]
    different = len({np.abs(vector[:_SHORT]).tobytes() for vector in begun})
    return check("noise.draws", len(begun) - different, 0.0, len(begun), passed=whole and different == len(begun))


def _reach(tap: Tap) -> Check:
    """Release noise made of the most unlikely words of a keystream: it has to reach far on both sides.

    A noise that ends at five deviations differs from one that does not once in two million values. Words that begin
    with each of 64 values and go on with zeros lead to the ends of every table that the noise is made of.
    """
    releases = max(1, _SCRIPTED // tap.parameters)
    generator = np.random.default_rng(0)

    def script(count: int) -> Words:
        words: Words = generator.integers(0, 64, count, dtype=np.uint64) << np.uint64(58)
        return words

    scale = deviation_of(tap) * tap.grid
    released = [tap.release_scripted(script) / scale for _ in range(releases)]
    reach = float(min(max(-values.min() for values in released), max(values.max() for values in released)))
    return check("noise.reach", _REACH / max(reach, 1e-9), 1.0, releases, passed=reach >= _REACH)


def _entropy(tap: Tap) -> Check:
    """Draw under a key that is known: the same key must give the same noise, and each of its bits another one."""
    return by_key("noise.entropy", lambda key: tap.draw(_SHORT, key), 0.0)


def by_key(name: str, draw: Callable[[Callable[[int], bytes]], Integers], alike: float) -> Check:
    """Check that what the operating system's generator gives decides a draw, with all 256 bits, and nothing else does.

    Args:
      name: of the check.
      draw: draws with a generator in place of the operating system's.
      alike: the probability that two independent draws are equal.
    """
    known = bytes(range(7, 7 + _KEY_BITS // 8))

    def key(turned: int | None) -> Callable[[int], bytes]:
        bits = bytearray(known)
        if turned is not None:
            bits[turned // 8] ^= 1 << turned % 8
        return lambda count: (bytes(bits) * (count // len(bits) + 1))[:count]

    first = draw(key(None))
    again = all(np.array_equal(draw(key(None)), first) for _ in range(2))
    same = sum(np.array_equal(draw(key(turned)), first) for turned in range(_KEY_BITS))
    p = frequency(same, _KEY_BITS, alike) if same > alike * _KEY_BITS else 1.0
    made = by_chance(name, p if again else 0.0, 1)
    return made.model_copy(update={"count": _KEY_BITS})
