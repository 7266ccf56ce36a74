"""Row counts that were proved before: for which job and machine they hold, and as what they travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.jobs.selftest import ProvedRows, ShapeProof, shapes_digest

if TYPE_CHECKING:
    from appliance.jobs.selftest import SelftestJob
    from appliance.jobs.train import TrainJob
    from appliance.train.rows import RowCounts


def read_counts(proof: ShapeProof | None, job: SelftestJob | TrainJob, model: Any) -> RowCounts | None:
    """Give the row counts of a proof if it is of such a job and of this machine.

    Args:
      proof: what the control plane passed on.
      job: the job at hand.
      model: the loaded model; its device counts.
    """
    from appliance.train.machine import machine_digest
    from appliance.train.rows import RowCounts

    if proof is None or proof.shapes != shapes_digest(job) or proof.machine != machine_digest(model.device):
        return None
    counts, bits = ({row.length: getattr(row, name) for row in proof.rows} for name in ("counts", "bits"))
    return RowCounts(counts, proof.shared, bits)


def state_proof(counts: RowCounts, job: SelftestJob, model: Any) -> ShapeProof:
    """State what was proved, for later jobs."""
    from appliance.train.machine import machine_digest

    rows = [ProvedRows(length=n, counts=tuple(at), bits=counts.bits[n]) for n, at in sorted(counts.proved.items())]
    machine = machine_digest(model.device)
    return ShapeProof(shapes=shapes_digest(job), machine=machine, rows=tuple(rows), shared=counts.shared)
