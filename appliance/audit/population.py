"""Records that are nobody's, as many as the loop needs to be driven with, and a plan that is as long as the drive."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.random import default_rng

from appliance.audit.canaries import Gradient, Pool, cut
from appliance.jobs.plan import Filter, Phase, PrivacyPlan, UnitKind
from appliance.jobs.record import Record

_NUMBER = "self-test-number"
_OTHER = Filter(field="self-test-phase", values=("other",))
_OTHERS = ((64, 16), (96, 12), (160, 10))  # (units, batch): one of them has neither the rate nor the batch of the plan
_RECORDS = (1, 1, 1, 2, 1, 5)  # of the units of a plan whose unit is the subject, in turn
_MOST_RECORDS = 64
_MOST_UNITS = 4096
_WORDS = ("the", "sky", "is", "blue", "and", "water", "wet")


def shortened(plan: PrivacyPlan, steps: int, spare: int) -> PrivacyPlan:
    """Shorten a plan to so many steps, with all its phases, and with a second one where it has only one."""
    phases = list(plan.schedule)
    if len(phases) == 1:
        phases.append(_other(phases[0]))
    share = max(1, steps // len(phases))
    lengths = [share] * (len(phases) - 1) + [max(1, steps - share * (len(phases) - 1))]
    short = [phase.model_copy(update={"steps": n}) for phase, n in zip(phases, lengths, strict=True)]
    units = max(plan.declared_units, *(phase.declared_units for phase in short))
    changes = {"phases": tuple(short), "steps": sum(lengths), "spare_steps": spare, "declared_units": units}
    return plan.model_copy(update=changes)


def _other(first: Phase) -> Phase:
    for units, batch in _OTHERS:
        if batch != first.expected_batch_size and not 2 / 3 < float(first.sample_rate) * units / batch < 3 / 2:
            break
    return Phase(name="other", steps=1, declared_units=units, expected_batch_size=batch, where=_OTHER)


class Population(Sequence[Record]):
    """Units of privacy with their records, for all phases of a plan.

    Args:
      plan: whose units and filters count.
      batches: how many units are expected in a batch of each phase, at most; a phase without a filter gets more.
      seed: decides texts and gradients.
      times: norms of records lie between these multiples of C.
      most: units of one phase.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        batches: float,
        seed: int,
        times: tuple[float, float] = (0.2, 50.0),
        most: int = _MOST_UNITS,
    ) -> None:
        self._schedule, self._clip = plan.schedule, plan.max_grad_norm
        self._grouped = plan.unit.kind == UnitKind.SUBJECT
        self._seed, self._times = seed, times
        units: list[tuple[int, int]] = []  # (unit, phase whose filter it matches) of every record
        name = 0
        for phase, each in enumerate(self._schedule):
            for number in range(max(1, round(min(most, batches / float(each.sample_rate))))):
                units += [(name, group) for group in self._groups(phase, number, plan.unit.max_records)]
                name += 1
        order = default_rng(seed).permutation(len(units))
        self._units = [units[at] for at in order]

    def __len__(self) -> int:
        """Count the records."""
        return len(self._units)

    def __getitem__(self, number: int) -> Record:  # type: ignore[override]
        """Write a record."""
        if not 0 <= number < len(self._units):
            raise IndexError(number)
        unit, phase = self._units[number]
        where = self._schedule[phase].where
        fields = ((_NUMBER, str(number)), *(((where.field, where.values[0]),) if where else ()))
        words = " ".join(_WORDS[(number + n) % len(_WORDS)] for n in range(1 + number % 13))
        return Record(unit=f"unit-{unit}", kind="text", parts=(("text", words),), fields=fields)

    def number_of(self, record: Record) -> int:
        """Find a record's position."""
        return int(dict(record.fields)[_NUMBER])

    def row(self, number: int, parameters: int) -> Gradient:
        """Cut the gradient of a record."""
        generator = default_rng([self._seed, number])
        low, high = np.log(self._times)
        norm = float(np.exp(generator.uniform(low, high))) * self._clip
        start = int(generator.integers(parameters))
        return cut(_pool(self._seed, parameters).window(start), norm, generator)

    def units(self, phase: int) -> list[list[int]]:
        """List the records of every unit that has any in a phase: a second reading of unit and filter."""
        where = self._schedule[phase].where
        found: dict[int, list[int]] = {}
        for number, (unit, _) in enumerate(self._units):
            fields = self[number].fields
            if where is None or any(name == where.field and value in where.values for name, value in fields):
                found.setdefault(unit if self._grouped else number, []).append(number)
        return list(found.values())

    def _groups(self, phase: int, number: int, most: int) -> list[int]:
        """List, for each record of a unit, the phase whose filter it matches: the last of many matches another's."""
        if not self._grouped:
            return [phase]
        count = min(most, _MOST_RECORDS if number == 0 else _RECORDS[number % len(_RECORDS)])
        other = (phase + 1) % len(self._schedule)
        return [phase] * (count - 1) + [other if count > 2 else phase]


@lru_cache(maxsize=4)
def _pool(seed: int, parameters: int) -> Pool:
    return Pool(parameters, default_rng([seed, parameters]))
