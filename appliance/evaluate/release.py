"""From the records of a held-out dataset to one noised sum; everything before the noise stays in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.evaluate.losses import Tokens
from appliance.privacy.evaluation import Statistic
from appliance.values import Private

Losses = NDArray[np.float64]
R = TypeVar("R")
S = TypeVar("S", covariant=True)

WINDOW = 256
"""Records that are encoded at once, to be sorted by length; results do not depend on it."""


class Records(Protocol, Generic[S]):
    """Random access to decrypted records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> S: ...


def record_losses(
    records: Records[R], encode: Callable[[R], Tokens], measure: Callable[[list[Tokens]], Losses]
) -> Private[Losses]:
    """Measure the losses of all records, float64 [records, 1 + adapters]; see `losses.Meter.measure`."""
    windows = [
        measure([encode(records[index]) for index in range(start, min(start + WINDOW, len(records)))])
        for start in range(0, len(records), WINDOW)
    ]
    return Private(np.concatenate(windows) if windows else np.zeros((0, 1)))


def noised_sum(
    losses: Private[Losses],
    units: Sequence[str],
    statistic: Statistic,
    draw: Callable[[int], NDArray[np.int64]],
) -> tuple[int, ...]:
    """Make the DP release: exact integer sums over the units of privacy plus noise.

    Args:
      losses: of every record, base first.
      units: the unit of privacy of every record.
      statistic: what a unit adds.
      draw: draws that many independent discrete Gaussians of `statistic.noise_variance`.

    Returns:
      `statistic.size` integers.
    """
    total = [0] * statistic.size
    for differences in _by_unit(losses.reveal(), units):
        total = [sum_ + part for sum_, part in zip(total, statistic.row(differences), strict=True)]
    return tuple(sum_ + int(noise) for sum_, noise in zip(total, draw(statistic.size), strict=True))


def _by_unit(losses: Losses, units: Sequence[str]) -> Iterator[list[float]]:
    """Take for each unit the mean over its records, in their order, of base minus adapter."""
    members: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    for rows in members.values():
        own = losses[rows]
        with np.errstate(invalid="ignore"):  # infinite losses: the difference is no number, and counts as nothing
            yield (own[:, :1] - own[:, 1:]).mean(axis=0).tolist()
