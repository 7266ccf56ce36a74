"""An evaluation: the held-out dataset's key, the sandbox, the losses, the noise; exact losses never leave this process.

What leaves is one noised sum over the units of privacy, and figures of public text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.jobs.evaluate import EvaluateJob, EvaluateResult
from appliance.jobs.plan import UnitKind
from appliance.jobs.rundir import RunDir
from appliance.jobs.variants import MARKED
from appliance.privacy.evaluation import Statistic
from appliance.store import container
from appliance.store.agent import AgentClient
from appliance.values import decimal
from appliance.worker import confinement
from appliance.worker.opening import DecodedRecords
from appliance.worker.variants import open_variants

if TYPE_CHECKING:
    from appliance.evaluate.losses import Meter

JOB = EvaluateJob


def run(job: EvaluateJob, run_dir: RunDir) -> EvaluateResult:
    """Measure the adapters of a run against their base on held-out records and on public text."""
    sealed, adapters = job.dataset, job.adapters
    gpu = confinement.gpu_of(job.engine)
    client = AgentClient(Path(job.agent_socket))
    evidence = run_dir.evidence.read_bytes()
    key = client.release(evidence, sealed.dataset_id, sealed.wrapped_key, sealed.key_epoch)
    places = [Path(job.model_dir), Path(sealed.path), *(directory for directory, _ in adapters.values())]
    isolation = confinement.enter(job.isolation, run_dir, *places, gpu=gpu)
    opened = open_variants(job)
    tokenizer, meter = opened.tokenizer, opened.meter()
    public = _public(job, tokenizer, meter, list(adapters)) if job.public_tokens else {}
    with container.open_records(Path(sealed.path), key, sealed.dataset_id, sealed.blake3) as records:
        released = _release(job, tokenizer, meter, DecodedRecords(records))
    return EvaluateResult(
        run_id=job.run_id,
        evaluation_id=job.evaluation_id,
        released=released,
        public=public,
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _release(job: EvaluateJob, tokenizer: Any, meter: Meter, records: DecodedRecords) -> tuple[int, ...]:
    from appliance.evaluate.release import noised_sum, record_losses
    from appliance.train.encode import Encoder
    from appliance.train.noise import DiscreteGaussian

    losses = record_losses(records, Encoder(tokenizer, job.train).encode, lambda part: meter.measure(part).numpy())
    single = job.unit.kind == UnitKind.RECORD
    units = [str(index) if single else records[index].unit for index in range(len(records))]
    statistic = Statistic(comparisons=len(job.adapters), clip_nat=job.clip_nat)
    noise = DiscreteGaussian(statistic.noise_variance(job.noise_multiplier))
    return noised_sum(losses, units, statistic, noise.draw)


def _public(job: EvaluateJob, tokenizer: Any, meter: Meter, names: list[str]) -> dict[str, str]:
    """Measure public text: exact, and no function of private records but through the adapters, which are DP."""
    from appliance.evaluate.public_text import digest
    from appliance.evaluate.utility import BLOCK, block_losses, relative_change

    losses = block_losses(tokenizer, job.public_tokens, lambda part: meter.measure(part).numpy())
    found = {"tokens": str(len(losses) * BLOCK), "text_sha256": digest()}
    for column, name in enumerate(("base", *names)):
        found[f"loss_{name}"] = decimal(round(float(losses[:, column].mean()), 6))
    if MARKED in names:
        change = relative_change(losses[:, 1], losses[:, 2])
        named = (("change_percent", change.percent), ("low", change.low), ("high", change.high))
        found |= {name: decimal(round(value, 6)) for name, value in named}
    return found
