"""Which records belong to each unit of privacy, of those that a phase trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from appliance.errors import ConfigInvalid
from appliance.jobs.plan import Filter, UnitKind, UnitOfPrivacy
from appliance.jobs.record import Record


class Records(Protocol):
    """Random access to the decrypted training records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def members(
    unit: UnitOfPrivacy, records: Records, unit_of: Sequence[str] | None = None, where: Filter | None = None
) -> list[list[int]]:
    """List the records of each unit that has any which `where` selects; None selects all.

    Args:
      unit: the unit of privacy of the plan.
      records: the private records.
      unit_of: the unit of each record; read from the records when it is None.
      where: a phase's filter.

    Raises:
      ConfigInvalid: when `unit_of` does not name a unit for each record.
    """
    chosen = range(len(records)) if where is None else [n for n in range(len(records)) if where.selects(records[n])]
    if unit.kind == UnitKind.RECORD:
        return [[index] for index in chosen]
    if unit_of is not None and len(unit_of) != len(records):
        raise ConfigInvalid("there must be one unit of privacy for each record")
    grouped: dict[str, list[int]] = {}
    for index in chosen:
        grouped.setdefault(unit_of[index] if unit_of is not None else records[index].unit, []).append(index)
    return list(grouped.values())
