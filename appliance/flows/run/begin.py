"""Which run a run file is of: its name says so. A run file is trained once, unless a second time is asked for."""

from __future__ import annotations

from appliance.errors import Busy, UsageError
from appliance.flows import catalog, launch
from appliance.flows.gates import find_gates
from appliance.flows.home import Home
from appliance.flows.run.plan import resolve
from appliance.jobs.train import TrainJob
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import RunRow
from appliance.policy.run_file import RunFile


def find_open(home: Home, run: RunFile) -> RunRow | None:
    """Find the run of a run file that can go on, or None where no run has its name.

    Raises:
      UsageError: the run has ended, or it was reserved from a file that asked for something else.
      Busy: another process supervises the run.
      IntegrityError: its job was altered.
    """
    with home.reader() as ledger:
        with ledger.read() as rows:
            named = [row for row in rows.runs.list() if row.name == run.name]
        if not named:
            return None
        row = next((row for row in named if row.state.open), named[-1])
        _require_open(row)
        _require_same(home, ledger, row, run)
    if (pid := launch.supervisor_of(home.run(row.id))) is not None:
        hint = f"follow it with `appliance train watch {row.id}`"
        raise Busy(f"run {row.name} ({row.id}) is being trained already, by process {pid}", hint=hint)
    return row


def rename(home: Home, run: RunFile) -> RunFile:
    """Give a run file that is to be trained once more a name that no run has."""
    with home.rows() as rows:
        return run.model_copy(update={"name": catalog.free_run_name(rows, run.name)})


def _require_open(row: RunRow) -> None:
    if not row.state.open:
        charged = f", epsilon {row.epsilon_charged} charged" if row.epsilon_charged else ""
        hint = "`--again` trains it once more and spends again; for another run change the name in the file"
        raise UsageError(f"run {row.name} ({row.id}) is {row.state}{charged}", hint=hint)


def _require_same(home: Home, ledger: LedgerReader, row: RunRow, run: RunFile) -> None:
    """Refuse to take an open run for that of a file that asks for something else."""
    job = home.run(row.id).reserved_job(TrainJob, row.spec_sha256)
    resolved = resolve(ledger, run)
    gates = find_gates(ledger, row.id), run.gates.max_losses()
    reserved = (job.dataset.dataset_id, job.model_sha256, job.plan, job.lora, job.train, gates[0])
    if reserved != (resolved.dataset.id, run.base.sha256, resolved.plan, run.lora, run.train_spec, gates[1]):
        hint = f"change the name in the file, or go on with the other: `appliance train resume {row.id}`"
        raise UsageError(f"run {row.name} ({row.id}) is {row.state}, and this file asks for another", hint=hint)
