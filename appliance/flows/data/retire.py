"""`data retire`: no new run and no new evaluation may use a dataset; what was reserved before goes on."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import UsageError
from appliance.events.data import DataRetired
from appliance.events.states import CatalogState
from appliance.flows.catalog import Rows, find_dataset
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.ledger.rows import DatasetRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """A dataset that is retired, and the runs on it that are open and go on."""

    dataset: DatasetRow
    open_runs: tuple[str, ...]


def preview(home: Home, named: str) -> Retired:
    """Find what `retire` would retire. Raises as it does."""
    with home.rows() as rows:
        return _find(rows, named)


def retire(home: Home, named: str, operator: Operator) -> Retired:
    """Retire a dataset, for good. What it has spent stays charged to those that share units with it.

    Raises:
      ArtefactMissing: there is no such dataset.
      UsageError: it is retired already.
    """
    with Desk.open(home, operator) as desk, desk.transact() as tx:
        found = _find(tx, named)
        row = tx.datasets.update(found.dataset, state=CatalogState.RETIRED)
        tx.append(DataRetired(dataset_id=row.id, open_runs=list(found.open_runs)))
    return Retired(dataset=row, open_runs=found.open_runs)


def _find(rows: Rows, named: str) -> Retired:
    row = find_dataset(rows, named)
    if row.state == CatalogState.RETIRED:
        raise UsageError(f"dataset {row.name} is retired already")
    runs = (run.id for run in rows.runs.list() if run.dataset_id == row.id and run.state.open)
    return Retired(dataset=row, open_runs=tuple(runs))
