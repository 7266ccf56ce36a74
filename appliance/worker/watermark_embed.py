"""Embedding: put the owner's mark into a run's adapter.

key from the agent -> sandbox -> base model and public text -> mark -> certificate
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateFailed, IntegrityError
from appliance.files import staged_directory, write_atomic
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import EmbedJob, EmbedResult
from appliance.store import container
from appliance.store.trees import tree_digest
from appliance.worker import confinement
from appliance.worker.marking import digests, release_key, residual
from appliance.worker.opening import load_base

if TYPE_CHECKING:
    from appliance.watermark.detection import Residual
    from appliance.watermark.release import Marked, Prepared

JOB = EmbedJob
_CHARACTERS = 40_000  # of public text: more than the tokens that are measured


def run(job: EmbedJob, run_dir: RunDir) -> EmbedResult:
    """Embed the mark; what is made lies in `run_dir` when this returns."""
    gpu = confinement.gpu_of(job.engine)
    master = release_key(job, run_dir)
    adapter_dir = Path(job.adapter_dir)
    isolation = confinement.enter(job.isolation, run_dir, Path(job.model_dir), adapter_dir, gpu=gpu)
    from appliance.watermark import certificate, escrow, keys, release
    from appliance.watermark.adapters import read_adapter

    if tree_digest(adapter_dir)[0] != job.adapter_sha256:
        raise IntegrityError("the adapter is not the one the ledger knows", where=job.adapter_dir)
    role = keys.owner_role(job.run_id)
    key_of = partial(keys.module_key, master, job.model_sha256, role)
    factors = read_adapter(adapter_dir)
    prepared = _prepare(job, factors)
    marked = release.embed(prepared, key_of, factors.scale)
    released_sha256 = _write_released(adapter_dir, run_dir, marked)
    reference = escrow.write(prepared.references, job.model_sha256, role)
    container.seal_bytes(reference, run_dir.escrow, keys.escrow_key(master, job.run_id), job.run_id)
    found, _ = residual(job, run_dir.released, escrow.read(reference, escrow.digest(reference)))
    score = _require_score(found, key_of)
    about = digests(job, released_sha256, escrow.digest(reference), role)
    document = certificate.certificate(about, "adapter", score, 1, prepared.predicted)
    write_atomic(run_dir.certificate, document)
    return EmbedResult(
        run_id=job.run_id,
        released_sha256=released_sha256,
        escrow_sha256=escrow.digest(reference),
        certificate_sha256=hashlib.sha256(document).hexdigest(),
        algorithm_sha256=certificate.algorithm_sha256(),
        strength=certificate.strength_text(prepared.rho),
        modules=len(prepared.samples),
        score=certificate.text_of(score),
        score_predicted={name: certificate.text_of(value) for name, value in prepared.predicted.items()},
        p_bound=certificate.p_text(score, 1),
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _prepare(job: EmbedJob, factors: Any) -> Prepared:
    from appliance.evaluate import public_text
    from appliance.watermark.activations import top_directions
    from appliance.watermark.release import prepare

    model, tokenizer = load_base(job.model_dir, job.model_sha256, job.engine)
    tokens = tokenizer(public_text.halves()[0][:_CHARACTERS])["input_ids"]
    directions = top_directions(model, factors.names, tokens)
    return prepare(factors, lambda name: model.get_submodule(name).weight.cpu(), directions)


def _write_released(adapter_dir: Path, run_dir: RunDir, marked: Marked) -> str:
    """Write the marked adapter; returns its digest."""
    from appliance.watermark.adapters import write_adapter

    run_dir.clear(run_dir.released)
    with staged_directory(run_dir.released) as made:
        write_adapter(adapter_dir, made, marked.a, marked.b)
    return tree_digest(run_dir.released)[0]


def _require_score(found: Residual, key_of: Any) -> float:
    from appliance.watermark.detection import is_detected, score

    reached = score(found, key_of)
    if not is_detected(reached):
        hint = "the adapter is too small to carry a mark: raise its rank or adapt more layers"
        raise GateFailed(f"the mark reaches a score of {reached:.1f} where 13.4 is needed", hint=hint)
    return reached
