"""Watermark jobs: embed the owner's mark in a run's adapter, or look for it in a suspect.

    key from the agent -> sandbox -> base model and public text -> mark or detect -> certificate

No private record is opened: the adapter is a differentially private release, and everything else is public or a key.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateFailed, IntegrityError
from appliance.records import DetectJob, DetectResult, EmbedJob, EmbedResult
from appliance.store import container
from appliance.store.agent import AgentClient
from appliance.store.commitment import commit_to
from appliance.store.files import commit, fsync_tree, tree_digest, write_atomic
from appliance.worker import sandboxed
from appliance.worker.opening import load_base

if TYPE_CHECKING:
    from appliance.isolation.gpu import Gpu
    from appliance.watermark.detection import Residual
    from appliance.watermark.release import Marked, Prepared

CERTIFICATE = "watermark_certificate.json"
ESCROW = "escrow.sealed"
RELEASED = "released"
_CHARACTERS = 40_000  # of public text: more than the tokens that are measured


def run(job: EmbedJob | DetectJob, run_dir: Path) -> EmbedResult | DetectResult:
    """Embed or detect; what is made lies in `run_dir` when this returns."""
    if isinstance(job, DetectJob):
        return _detect(job, run_dir, _release_key(job, run_dir))
    gpu = sandboxed.gpu_of(job.engine)
    return _embed(job, run_dir, _release_key(job, run_dir), gpu)


def _release_key(job: EmbedJob | DetectJob, run_dir: Path) -> bytes:
    client = AgentClient(Path(job.agent_socket))
    evidence = (run_dir / "evidence.json").read_bytes()
    master = client.release(evidence, job.key.key_id, job.key.wrapped_key, job.key.key_epoch)
    if commit_to(master) != job.key.commitment:
        raise IntegrityError(f"the watermark key {job.key.key_id} is not the one the ledger committed to")
    return master


def _embed(job: EmbedJob, run_dir: Path, master: bytes, gpu: Gpu | None) -> EmbedResult:
    adapter_dir = Path(job.adapter_dir)
    isolation = sandboxed.enter(job.isolation, run_dir, Path(job.model_dir), adapter_dir, gpu=gpu)
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
    container.seal_bytes(reference, run_dir / ESCROW, keys.escrow_key(master, job.run_id), job.run_id)
    residual, _ = _residual(job, run_dir / RELEASED, escrow.read(reference, escrow.digest(reference)))
    score = _checked_score(residual, key_of)
    digests = _digests(job, released_sha256, escrow.digest(reference), role)
    document = certificate.certificate(digests, "adapter", score, 1, prepared.predicted)
    write_atomic(run_dir / CERTIFICATE, document)
    return EmbedResult(
        schema="appliance.result/1",
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
        libraries=sandboxed.libraries(),
    )


def _prepare(job: EmbedJob, factors: Any) -> Prepared:
    from appliance.evaluate import public_text
    from appliance.watermark.activations import top_directions
    from appliance.watermark.release import prepare

    model, tokenizer = load_base(job.model_dir, job.model_sha256, job.engine)
    tokens = tokenizer(public_text.halves()[0][:_CHARACTERS])["input_ids"]
    directions = top_directions(model, factors.names, tokens)
    return prepare(factors, lambda name: model.get_submodule(name).weight.cpu(), directions)


def _write_released(adapter_dir: Path, run_dir: Path, marked: Marked) -> str:
    """Write the marked adapter beside its name and rename it; returns its digest."""
    from appliance.watermark.adapters import write_adapter

    made = run_dir / f"{RELEASED}.partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    write_adapter(adapter_dir, made, marked.a, marked.b)
    fsync_tree(made)
    shutil.rmtree(run_dir / RELEASED, ignore_errors=True)
    commit(made, run_dir / RELEASED)
    return tree_digest(run_dir / RELEASED)[0]


def _checked_score(residual: Residual, key_of: Any) -> float:
    from appliance.watermark.detection import is_detected, score

    found = score(residual, key_of)
    if not is_detected(found):
        hint = "the adapter is too small to carry a mark: raise its rank or adapt more layers"
        raise GateFailed(f"the mark reaches a score of {found:.1f} where 13.4 is needed", hint=hint)
    return found


def _residual(job: EmbedJob | DetectJob, suspect: Path, references: Any) -> tuple[Residual, str]:
    """The residual of a suspect directory, and what it is: an adapter or a model."""
    from appliance.watermark.adapters import CONFIG, AdapterSuspect, ModelSuspect, open_tensors, read_adapter
    from appliance.watermark.detection import project

    if (suspect / CONFIG).exists():
        return project(AdapterSuspect(read_adapter(suspect)), references), "adapter"
    if tree_digest(Path(job.model_dir))[0] != job.model_sha256:
        raise IntegrityError("the base model is not the one of the job", where=job.model_dir)
    with open_tensors(suspect) as theirs, open_tensors(Path(job.model_dir)) as base:
        return project(ModelSuspect(theirs, base), references), "model"


def _detect(job: DetectJob, run_dir: Path, master: bytes) -> DetectResult:
    """Compare weights with a reference; nothing is computed on a GPU, so none is opened, whatever the run had."""
    suspect = Path(job.suspect)
    isolation = sandboxed.enter(job.isolation, run_dir, Path(job.model_dir), suspect, Path(job.escrow))
    from appliance.watermark import certificate, escrow, keys
    from appliance.watermark.detection import score

    sealed = container.open_bytes(Path(job.escrow), keys.escrow_key(master, job.run_id), job.run_id)
    references = escrow.read(sealed, job.escrow_sha256)
    role = keys.owner_role(job.run_id)
    residual, kind = _residual(job, suspect, references)
    found = score(residual, partial(keys.module_key, master, job.model_sha256, role))
    suspect_sha256 = tree_digest(suspect)[0]
    digests = _digests(job, suspect_sha256, job.escrow_sha256, role)
    document = certificate.certificate(digests, kind, found, job.keys_tested)
    write_atomic(run_dir / CERTIFICATE, document)
    verdict = certificate.verdict(found, job.keys_tested)
    return DetectResult(
        schema="appliance.result/1",
        run_id=job.run_id,
        suspect_sha256=suspect_sha256,
        suspect_kind="adapter" if kind == "adapter" else "model",
        score=verdict["statistic"],
        p_bound=verdict["p_bound"],
        detected=verdict["detected"],
        certificate_sha256=hashlib.sha256(document).hexdigest(),
        isolation=isolation,
        libraries=sandboxed.libraries(),
    )


def _digests(job: EmbedJob | DetectJob, suspect_sha256: str, escrow_sha256: str, role: str) -> dict[str, str]:
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
