"""What embedding and detecting share: the entry that opens the key, and the worker."""

from __future__ import annotations

import hashlib
import math
import secrets
from pathlib import Path
from typing import Any, TypeVar

from appliance.events.watermark import WatermarkStarted
from appliance.files import write_atomic
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.flows.home import Home
from appliance.flows.watermark.markable import Markable
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import DetectJob, EmbedJob
from appliance.values import Value

R = TypeVar("R", bound=Value)


def run_job(desk: Desk, markable: Markable, job: EmbedJob | DetectJob, job_dir: RunDir, kind: type[R]) -> R:
    """Leave the evidence for the key agent, which a signed entry proves, then run the worker.

    A suspect is foreign: as with an import, there is a time in which the worker ends.
    """
    started = WatermarkStarted(
        run_id=markable.run.id,
        key_id=job.key.key_id,
        nonce=secrets.token_hex(16),
        purpose="embed" if isinstance(job, EmbedJob) else "detect",
    )
    write_atomic(job_dir.evidence, desk.prove(desk.record(started)))
    job_dir.write_job(job)
    within_s = launch.time_for(Path(job.suspect), markable.model_dir) if isinstance(job, DetectJob) else math.inf
    return launch.run_worker(job_dir, kind, within_s=within_s)


def common_fields(home: Home, markable: Markable) -> dict[str, Any]:
    """Give the fields that both jobs share. Device, dtype and threads are those of the run: a repetition agrees."""
    trained = markable.job
    return {
        "run_id": markable.run.id,
        "engine": trained.engine,
        "isolation": trained.isolation,
        "model_dir": str(markable.model_dir),
        "model_sha256": trained.model_sha256,
        "key": markable.key,
        "agent_socket": str(home.agent_socket),
    }


def file_sha256(path: Path) -> str:
    """Digest a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
