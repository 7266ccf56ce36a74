"""Faults of the units: what is grouped, clipped and sampled together."""

from __future__ import annotations

from typing import Any

from appliance.jobs.plan import UnitOfPrivacy
from appliance.train import loop
from appliance.train.engine import Engine
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.clip import accumulate
from tests.unit.audit.mutants.registry import SUBJECTS, Patch, mutant

members, group = loop.members, Engine._accumulate_group


def regrouped(patch: Patch, change: Any) -> None:
    """Passes every logical batch through `change`."""
    patch.setattr(Engine, "accumulate", lambda self, units: accumulate(self, change(units)))


@mutant("replay.unit")
def records_clipped_instead_of_units(patch: Patch, tap: ReleaseTap) -> None:
    regrouped(patch, lambda units: [[record] for unit in units for record in unit])


@mutant("units.exact")
def units_of_more_than_three_records_are_split(patch: Patch, tap: ReleaseTap) -> None:
    regrouped(patch, lambda units: [unit[n : n + 3] for unit in units for n in range(0, len(unit), 3)])


@mutant("units.exact", SUBJECTS)
def units_of_more_than_seven_records_are_split(patch: Patch, tap: ReleaseTap) -> None:
    regrouped(patch, lambda units: [unit[n : n + 7] for unit in units for n in range(0, len(unit), 7)])


@mutant("units.exact", SUBJECTS)
def units_of_as_many_records_as_may_be_are_split(patch: Patch, tap: ReleaseTap) -> None:
    regrouped(patch, lambda units: [part for u in units for part in ([u[:8], u[8:]] if len(u) == 16 else [u])])


@mutant("units.exact")
def a_unit_is_split_by_lengths(patch: Patch, tap: ReleaseTap) -> None:
    def by_length(units: Any) -> Any:
        lengths = [sorted({record.length for record in unit}) for unit in units]
        return [[r for r in u if r.length == n] for u, found in zip(units, lengths, strict=True) for n in found]

    regrouped(patch, by_length)


@mutant("units.exact")
def units_beyond_a_group_are_clipped_record_by_record(patch: Patch, tap: ReleaseTap) -> None:
    def alone(self: Engine, units: Any) -> None:
        size = tap.rows
        whole, rest = units[:size], units[size:]
        accumulate(self, [*whole, *[[record] for unit in rest for record in unit]])

    patch.setattr(Engine, "accumulate", alone)


@mutant("units.exact")
def units_of_one_group_share_a_clip(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(
        Engine,
        "_accumulate_group",
        lambda self, units: group(self, [[record for unit in units for record in unit]]),
    )


@mutant("units.exact")
def the_first_record_stands_for_a_unit(patch: Patch, tap: ReleaseTap) -> None:
    regrouped(patch, lambda units: [unit[:1] for unit in units])


@mutant("loop.releases", SUBJECTS)
def subjects_are_sampled_as_records(patch: Patch, tap: ReleaseTap) -> None:
    def by_record(unit: UnitOfPrivacy, *rest: Any) -> list[list[int]]:
        return [[record] for whole in members(unit, *rest) for record in whole]

    patch.setattr(loop, "members", by_record)


@mutant("loop.releases", SUBJECTS)
def a_subject_with_many_records_is_two_units(patch: Patch, tap: ReleaseTap) -> None:
    def halved(unit: UnitOfPrivacy, *rest: Any) -> list[list[int]]:
        return [part for whole in members(unit, *rest) for part in (whole[:4], whole[4:]) if part]

    patch.setattr(loop, "members", halved)


@mutant("loop.releases")
def a_phase_trains_on_records_of_another(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(loop, "members", lambda unit, records, unit_of, where: members(unit, records, unit_of, None))


@mutant("loop.releases", SUBJECTS)
def a_record_of_another_unit_is_taken_along(patch: Patch, tap: ReleaseTap) -> None:
    def along(*given: Any) -> list[list[int]]:
        units = members(*given)
        return [[*unit, units[n - 1][0]] if n else unit for n, unit in enumerate(units)]

    patch.setattr(loop, "members", along)
