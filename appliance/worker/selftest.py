"""The engine self-test: the mechanism of a run on its real base model, without its data and without a key."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import GateFailed
from appliance.jobs.rundir import RunDir
from appliance.jobs.selftest import Check, SelftestJob, SelftestResult, ShapeProof
from appliance.worker import confinement
from appliance.worker.opening import load_base
from appliance.worker.proof import read_counts, state_proof
from appliance.worker.rates import gpu_rate

JOB = SelftestJob


def run(job: SelftestJob, run_dir: RunDir) -> SelftestResult:
    """Examine the mechanism that a run of this job would train with."""
    gpu = confinement.gpu_of(job.engine)
    isolation = confinement.enter(job.isolation, run_dir, Path(job.model_dir), gpu=gpu)
    rate = gpu_rate(job.engine)
    checks, proof = _examine(job)
    return SelftestResult(
        run_id=job.run_id,
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        isolation=isolation,
        libraries=confinement.libraries(),
        rate=rate,
        proof=proof,
    )


def _examine(job: SelftestJob) -> tuple[list[Check], ShapeProof | None]:
    """Prove the row counts of the run's micro-batches, then examine the mechanism under them."""
    from appliance.audit.selftest import examine
    from appliance.train.mechanism import assemble
    from appliance.train.proofs import prove
    from appliance.train.tap import ReleaseTap

    model, tokenizer = load_base(job.model_dir, job.model_sha256, job.engine, job.lora.quantize_base)
    assembled = assemble(job.plan, job.lora, job.train, job.engine, model, tokenizer)
    known, lengths = read_counts(job.proof, job, model), assembled.encoder.buckets
    try:
        proof = state_proof(prove(assembled.engine, lengths, known), job, model)
        return examine(ReleaseTap(assembled, job.plan), job.plan), proof
    except GateFailed as refusal:  # the engine's own refusal, on synthetic data: no release came out
        failed = Check(name="engine.releases", passed=False, value=refusal.message, bound="a release", count=0)
        return [failed], None
