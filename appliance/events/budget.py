"""What is said of lifetime budgets for whoever reads a report or a bundle."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Event, Facts, Id, Number, Text, Told, Whole, optional


class OpenFacts(Facts):
    """A run that is reserved and not settled: all of its reservation stands charged."""

    run_id: Id
    dataset_id: Id
    epsilon: Number


class ExportFacts(Facts):
    """A bundle of the run that was exported before."""

    bundle_id: Id
    recipient: Text | None
    entry: Whole


class BudgetStated(Event):
    """What a dataset has spent of its lifetime budget, stated for a report or a bundle of a run on it.

    `epsilon_spent` counts what is settled, and every evaluation; `epsilon_reserved` also `open`, the runs on the
    dataset, or on one that shares units with it, that are not settled. Neither is stated where nothing bounds it.
    `exports` are those of the run.
    """

    type: ClassVar[str] = "budget.stated"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = Told.BUNDLE | Told.REPORT

    run_id: Id
    dataset_id: Id
    cap: Number
    lifetime_delta: Number
    filter_order: Number
    counted_by: Text
    epsilon_spent: Number = optional()
    epsilon_reserved: Number = optional()
    open: list[OpenFacts]
    exports: list[ExportFacts]
