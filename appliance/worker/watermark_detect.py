"""Detection: look for the mark of a run in a suspect adapter or model.

key from the agent -> sandbox -> suspect and base model -> score -> certificate
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from appliance.files import write_atomic
from appliance.isolation import process
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import DetectJob, DetectResult
from appliance.store import container
from appliance.store.trees import tree_digest
from appliance.worker import confinement
from appliance.worker.marking import digests, release_key, residual

JOB = DetectJob
_MEMORY = 4 << 30  # bytes; importing torch takes 0.4 GiB of it, and single layers are compared in float64
_GROWTH = 8  # the tensors of a suspect adapter are held in float64; a large model has large layers


def run(job: DetectJob, run_dir: RunDir) -> DetectResult:
    """Look for the mark; the certificate lies in `run_dir` when this returns.

    Weights are compared with a reference; nothing is computed on a GPU, so none is opened, whatever the run had.
    """
    suspect = Path(job.suspect)
    process.limit_memory(_memory_for(suspect))
    master = release_key(job, run_dir)
    isolation = confinement.enter(job.isolation, run_dir, Path(job.model_dir), suspect, Path(job.escrow))
    from appliance.watermark import certificate, escrow, keys
    from appliance.watermark.detection import score

    sealed = container.open_bytes(Path(job.escrow), keys.escrow_key(master, job.run_id), job.run_id)
    references = escrow.read(sealed, job.escrow_sha256)
    role = keys.owner_role(job.run_id)
    left, kind = residual(job, suspect, references)
    found = score(left, partial(keys.module_key, master, job.model_sha256, role))
    suspect_sha256 = tree_digest(suspect)[0]
    about = digests(job, suspect_sha256, job.escrow_sha256, role)
    document = certificate.certificate(about, kind, found, job.keys_tested)
    write_atomic(run_dir.certificate, document)
    verdict = certificate.verdict(found, job.keys_tested)
    return DetectResult(
        run_id=job.run_id,
        suspect_sha256=suspect_sha256,
        suspect_kind="adapter" if kind == "adapter" else "model",
        score=verdict["statistic"],
        p_bound=verdict["p_bound"],
        detected=verdict["detected"],
        certificate_sha256=hashlib.sha256(document).hexdigest(),
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _memory_for(suspect: Path) -> int:
    return _MEMORY + _GROWTH * sum(path.stat().st_size for path in suspect.iterdir())
