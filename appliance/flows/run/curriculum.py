"""A curriculum: from the run file's shares to phases of the plan, and as the ledger states them.

Phases are composed one after the other, as if every unit were in all of them. (For records whose filters exclude each
other the largest phase alone would do; that saving is not taken.)
"""

from __future__ import annotations

from typing import Any

from appliance.errors import ConfigInvalid
from appliance.events.data import DataSealed
from appliance.events.run import PhaseFacts, PhaseSpent
from appliance.flows.budget import sample_rate_text
from appliance.jobs.plan import Phase, PrivacyPlan
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow
from appliance.policy.run_file import PhaseChoice, RunFile
from appliance.privacy.plan import share_out


def phases(ledger: LedgerReader, run: RunFile, dataset: DatasetRow) -> list[Phase]:
    """List the phases of a run file in order; none where it has no curriculum.

    Raises:
      ConfigInvalid: shares that do not add up, units above those of the dataset, or a field that was not kept.
    """
    if not run.curriculum:
        return []
    kept = kept_fields(ledger, dataset)
    for choice in run.curriculum:
        if choice.where is not None and choice.where.field not in kept:
            raise ConfigInvalid(
                f"dataset {dataset.name} keeps no field {choice.where.field}",
                hint=f"it keeps: {', '.join(kept)}" if kept else "ingest the data again with `--keep COLUMN`",
                where="curriculum.where.field",
            )
    steps = share_out([choice.ratio for choice in run.curriculum], run.steps(dataset.declared_units))
    pairs = enumerate(zip(run.curriculum, steps, strict=True), start=1)
    return [_phase(number, choice, share, run, dataset.declared_units) for number, (choice, share) in pairs]


def _phase(number: int, choice: PhaseChoice, steps: int, run: RunFile, declared_units: int) -> Phase:
    units = choice.units or declared_units
    batch = choice.expected_batch_size or min(units, run.train.expected_batch_size)
    if not batch <= units <= declared_units:
        raise ConfigInvalid(
            f"phase {number} expects {batch} of {units} units, the dataset has {declared_units}",
            hint="expected_batch_size is at most the phase's units, and those at most the declared units of the data",
            where="curriculum",
        )
    name = choice.name or f"phase-{number}"
    return Phase(name=name, steps=steps, declared_units=units, expected_batch_size=batch, where=choice.where)


def kept_fields(ledger: LedgerReader, dataset: DatasetRow) -> list[str]:
    """List the columns that were sealed beside every record of a dataset, as the ledger states them."""
    sealed = next(ledger.entries(DataSealed, subject=dataset.id, limit=1), None)
    return [] if sealed is None else list(sealed.leaf["facts"].get("kept", []))


def state_phases(plan: PrivacyPlan) -> dict[str, Any]:
    """State the phases as `run.reserved` states them; nothing for a plan without a curriculum."""
    if not plan.phases:
        return {}
    return {"phases": [_state_phase(phase) for phase in plan.phases]}


def _state_phase(phase: Phase) -> PhaseFacts:
    where: dict[str, Any] = {"field": phase.where.field, "values": list(phase.where.values)} if phase.where else {}
    return PhaseFacts(
        name=phase.name,
        steps=phase.steps,
        declared_units=phase.declared_units,
        expected_batch_size=phase.expected_batch_size,
        sample_rate=sample_rate_text(phase.sample_rate),
        **where,
    )


def spent_facts(plan: PrivacyPlan, attempts: int) -> dict[str, Any]:
    """State how many attempts each phase was charged, for the entry that ends a run; nothing without a curriculum."""
    if not plan.phases:
        return {}
    last = len(plan.phases) - 1
    counts = [0] * len(plan.phases)
    start = 0
    for number, phase in enumerate(plan.phases):
        end = attempts if number == last else start + phase.steps
        counts[number] = max(0, min(end, attempts) - start)
        start = end
    pairs = zip(plan.phases, counts, strict=True)
    return {
        "phases": [
            PhaseSpent(name=phase.name, sample_rate=sample_rate_text(phase.sample_rate), attempts=count)
            for phase, count in pairs
        ]
    }
