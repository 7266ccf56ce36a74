"""`train start`, first half: check everything, then reserve the worst case of the budget in one signed transaction."""

from __future__ import annotations

import hashlib
import shutil
from typing import Any

from appliance.errors import ApplianceError, BudgetExceeded, PolicyDenied, WillNotFit
from appliance.flows import curriculum, forecast, gpus, model
from appliance.flows.budget import Books, sample_rate_text
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.keys import require_unsealed
from appliance.flows.order import committed_facts, current_key
from appliance.flows.plan import Resolved, afford, resolve
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import RunRow
from appliance.policy.run_file import RunFile
from appliance.records import EngineOptions, SealedObject, TrainJob, decimal, to_json
from appliance.store.files import make_directory, write_atomic


def reserve(
    home: Home, run: RunFile, engine: EngineOptions, operator: Operator, *, memory: int | None = None
) -> RunRow:
    """Check everything and reserve the worst case of the budget; `resume` then starts the run.

    Args:
      home: the appliance's home.
      run: the run file.
      engine: how it is computed.
      operator: on whose behalf.
      memory: bytes that the forecast may count on; None asks the kernel.

    Raises:
      PolicyDenied, BudgetExceeded, WillNotFit, KeyUnavailable, IntegrityError: nothing was reserved, no data opened.
    """
    with home.ledger() as ledger:
        actor = home.actor(operator)
        try:
            resolved = resolve(ledger, run)
            afford(ledger, resolved)
            _require_watermark_key(ledger, resolved)
            engine = forecast.forecast(home, resolved, engine, memory).engine
            gpus.require(engine)
        except (PolicyDenied, BudgetExceeded, WillNotFit) as refusal:
            _record_refusal(ledger, actor, refusal)
            raise
        require_unsealed(home)
        model.check_files(home, resolved.model)
        run_dir = home.runs / new_id("run")
        make_directory(run_dir)
        try:
            job = to_json(_job(home, run_dir.name, resolved, engine))
            write_atomic(run_dir / "job.json", job)
            return _reserve(ledger, actor, _row(run_dir.name, job, resolved), resolved, operator.reason)
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise


def _require_watermark_key(ledger: Ledger, resolved: Resolved) -> None:
    if resolved.policy.rules(resolved.dataset.class_).watermark != "required":
        return
    with ledger.read() as rows:
        if current_key(rows) is None:
            hint = "make one with `appliance watermark keygen`"
            raise PolicyDenied("the policy requires a watermark, and there is no watermark key", hint=hint)


def _record_refusal(ledger: Ledger, actor: Actor, refusal: ApplianceError) -> None:
    with ledger.transaction(actor) as tx:
        tx.append("run.refused", {"code": refusal.exit_status, "reason": refusal.message})


def _row(run_id: str, job: bytes, resolved: Resolved) -> RunRow:
    plan = resolved.plan
    return RunRow(
        id=run_id,
        name=resolved.run.name,
        dataset_id=resolved.dataset.id,
        model_id=resolved.model.id,
        state="reserved",
        spec_sha256=hashlib.sha256(job).hexdigest(),
        policy_sha256=resolved.policy.digest,
        plan=to_json(plan).decode().strip(),
        reserved_attempts=plan.attempts,
        epsilon_reserved=decimal(plan.epsilon),
        delta=decimal(plan.delta),
    )


def _reserve(ledger: Ledger, actor: Actor, row: RunRow, resolved: Resolved, reason: str) -> RunRow:
    """Write the reservation. The budget was checked outside the transaction; what came since sends us back."""
    while True:
        seen, before, after = afford(ledger, resolved)
        with ledger.transaction(actor, reason=reason or None, policy_sha256=row.policy_sha256) as tx:
            if Books.read(tx) == seen:
                tx.runs.add(row)
                tx.append("run.reserved", _reserved_facts(row, resolved, before, after), subject=row.id)
                if key := current_key(tx):  # before training: a key chosen afterwards would prove nothing
                    facts = committed_facts(row.id, key, resolved.model.sha256)
                    tx.append("watermark.committed", facts, subject=row.id)
                break
    ledger.sign()
    return row


def _reserved_facts(row: RunRow, resolved: Resolved, before: float, after: float) -> dict[str, Any]:
    plan = resolved.plan
    cap = resolved.policy.rules(resolved.dataset.class_).max_epsilon
    return {
        "run_id": row.id,
        "dataset_id": row.dataset_id,
        "model_id": row.model_id,
        "spec_sha256": row.spec_sha256,
        "plan": {
            "unit": plan.unit.kind,
            "max_records": plan.unit.max_records,
            "neighbouring": plan.neighbouring,
            "declared_units": plan.declared_units,
            "expected_batch_size": plan.expected_batch_size,
            "sample_rate": sample_rate_text(plan.sample_rate),
            "steps": plan.steps,
            "attempts": plan.attempts,
            "max_grad_norm": decimal(plan.max_grad_norm),
            "clipping": plan.clipping,
            "noise_multiplier": decimal(plan.noise_multiplier),
            "epsilon": decimal(plan.epsilon),
            "delta": decimal(plan.delta),
            "sampler_delta": decimal(plan.sampler_delta),
            "accountant": plan.accountant,
            **curriculum.planned_facts(plan),
        },
        "epsilon_before": decimal(round(before, 9)),
        "epsilon_after": decimal(round(after, 9)),
        "cap": decimal(cap),
    }


def _job(home: Home, run_id: str, resolved: Resolved, engine: EngineOptions) -> TrainJob:
    dataset, run = resolved.dataset, resolved.run
    return TrainJob(
        schema="appliance.job/1",
        run_id=run_id,
        plan=resolved.plan,
        lora=run.lora,
        train=run.train_spec,
        engine=engine,
        isolation=resolved.policy.rules(dataset.class_).isolation,
        model_dir=str(model.directory(home, resolved.model)),
        model_sha256=resolved.model.sha256,
        dataset=SealedObject(
            dataset_id=dataset.id,
            path=str(home.objects / dataset.object_blake3),
            blake3=dataset.object_blake3,
            wrapped_key=dataset.wrapped_key,
            key_epoch=dataset.key_epoch,
        ),
        agent_socket=str(home.agent_socket),
    )
