"""What both watermark jobs do: fetch the owner's key, find the residual of a suspect, name what a certificate is about.

No private record is opened: the adapter is a differentially private release, and everything else is public or a key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import IntegrityError
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import DetectJob, EmbedJob
from appliance.store.agent import AgentClient
from appliance.store.commitment import commit_to
from appliance.store.trees import tree_digest

if TYPE_CHECKING:
    from appliance.watermark.detection import Residual


def release_key(job: EmbedJob | DetectJob, run_dir: RunDir) -> bytes:
    """Fetch the watermark key of the job; it must be the one that the ledger committed to."""
    client = AgentClient(Path(job.agent_socket))
    evidence = run_dir.evidence.read_bytes()
    master = client.release(evidence, job.key.key_id, job.key.wrapped_key, job.key.key_epoch)
    if commit_to(master) != job.key.commitment:
        raise IntegrityError(f"the watermark key {job.key.key_id} is not the one the ledger committed to")
    return master


def residual(job: EmbedJob | DetectJob, suspect: Path, references: Any) -> tuple[Residual, str]:
    """Find the residual of a suspect directory, and what it is: an adapter or a model."""
    from appliance.models.packed_weights import open_weights
    from appliance.watermark.adapters import CONFIG, AdapterSuspect, ModelSuspect, open_tensors, read_adapter
    from appliance.watermark.detection import project

    if (suspect / CONFIG).exists():
        return project(AdapterSuspect(read_adapter(suspect)), references), "adapter"
    if tree_digest(Path(job.model_dir))[0] != job.model_sha256:
        raise IntegrityError("the base model is not the one of the job", where=job.model_dir)
    with open_weights(suspect, Path(job.model_dir)) as theirs, open_tensors(Path(job.model_dir)) as base:
        return project(ModelSuspect(theirs, base), references), "model"


def digests(job: EmbedJob | DetectJob, suspect_sha256: str, escrow_sha256: str, role: str) -> dict[str, str]:
    """Say what a certificate is about."""
    from appliance.watermark.certificate import algorithm_sha256

    return {
        "run_id": job.run_id,
        "key_id": job.key.key_id,
        "role": role,
        "commitment": job.key.commitment,
        "suspect_sha256": suspect_sha256,
        "model_sha256": job.model_sha256,
        "escrow_sha256": escrow_sha256,
        "algorithm_sha256": algorithm_sha256(),
    }
