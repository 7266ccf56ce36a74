"""`train status`: every run, how far it has come, and whether anybody supervises it."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.events.states import RunState
from appliance.flows import launch
from appliance.flows.catalog import find_run
from appliance.flows.home import Home
from appliance.flows.run.following import Step, progress_of
from appliance.ledger.rows import RunRow

INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Listed:
    """A run, its public progress, and whether its supervisor is alive."""

    row: RunRow
    step: Step
    alive: bool

    @property
    def state(self) -> str:
        """Its state in words; interrupted if it was running when its supervisor died."""
        return INTERRUPTED if self.row.state == RunState.RUNNING and not self.alive else self.row.state


def list_runs(home: Home) -> list[Listed]:
    """List every run."""
    with home.rows() as rows:
        runs = rows.runs.list()
    listed = [_look(home, row) for row in runs]
    if any(one.state == INTERRUPTED for one in listed):  # or its supervisor has ended it since the row was read
        with home.rows() as rows:
            now = {row.id: row for row in rows.runs.list()}
        listed = [_look(home, now[one.row.id]) if one.state == INTERRUPTED else one for one in listed]
    return listed


def look(home: Home, run_id: str) -> Listed:
    """Look at one run. Raises `ArtefactMissing`."""
    with home.reader() as ledger:
        seen = _look(home, find_run(ledger, run_id))
        return _look(home, find_run(ledger, run_id)) if seen.state == INTERRUPTED else seen


def _look(home: Home, row: RunRow) -> Listed:
    return Listed(row, progress_of(home, row), is_supervised(home, row.id))


def state_of(home: Home, row: RunRow) -> str:
    """Say in what state a run was when its row was read, as `train status` does."""
    seen = _look(home, row).state
    return row.state if seen == INTERRUPTED != look(home, row.id).state else seen


def is_supervised(home: Home, run_id: str) -> bool:
    """Tell whether a supervisor of the run is alive."""
    return launch.supervisor_of(home.run(run_id)) is not None
