"""`train start`, first half: check everything, then reserve the worst case of the budget in one signed transaction."""

from __future__ import annotations

import shutil
from typing import Any

from appliance.errors import BudgetExceeded, Busy, PolicyDenied, WillNotFit
from appliance.events.run import PlanFacts, RunRefused, RunReserved
from appliance.events.states import RunState
from appliance.files import make_directory
from appliance.flows import gpus, launch
from appliance.flows.budget import Afforded, BudgetSnapshot, sample_rate_text
from appliance.flows.catalog import require_active
from appliance.flows.desk import Desk
from appliance.flows.gates import state_gates
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.key import require_unsealed
from appliance.flows.model.verify import check_files
from appliance.flows.run import curriculum, forecast
from appliance.flows.run.plan import Resolved, afford, resolve
from appliance.flows.watermark.markable import current_key, state_commitment
from appliance.jobs.job import EngineOptions, SealedObject
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.train import TrainJob
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import RunRow
from appliance.policy.run_file import RunFile
from appliance.values import decimal, to_json


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
    with Desk.open(home, operator) as desk:
        with desk.refusals(RunRefused, PolicyDenied, BudgetExceeded, WillNotFit):
            resolved = resolve(desk.ledger, run)
            afford(desk.ledger, resolved)
            _require_watermark_key(desk.ledger, resolved)
            engine = forecast.forecast(home, resolved, engine, memory).engine
            launch.require_compute()
            gpus.require(engine)
        require_unsealed(home)
        check_files(home, resolved.model)
        run_dir = home.run(new_id("run"))
        make_directory(run_dir.path)
        try:
            spec_sha256 = run_dir.write_job(_job(home, run_dir.name, resolved, engine))
            row = _row(run_dir.name, spec_sha256, resolved)
            return _book(desk, row, resolved)
        except BaseException:
            if not _is_booked(desk.ledger, run_dir.name):  # else the job belongs to a reservation that stands
                shutil.rmtree(run_dir.path, ignore_errors=True)
            raise


def _is_booked(ledger: LedgerReader, run_id: str) -> bool:
    with ledger.read() as rows:
        return rows.runs.find(run_id) is not None


def _require_watermark_key(ledger: LedgerReader, resolved: Resolved) -> None:
    if resolved.policy.rules(resolved.dataset.class_).watermark != "required":
        return
    with ledger.read() as rows:
        if current_key(rows) is None:
            hint = "make one with `appliance watermark keygen`"
            raise PolicyDenied("the policy requires a watermark, and there is no watermark key", hint=hint)


def _row(run_id: str, spec_sha256: str, resolved: Resolved) -> RunRow:
    plan = resolved.plan
    return RunRow(
        id=run_id,
        name=resolved.run.name,
        dataset_id=resolved.dataset.id,
        model_id=resolved.model.id,
        state=RunState.RESERVED,
        spec_sha256=spec_sha256,
        policy_sha256=resolved.policy.digest,
        plan=to_json(plan).decode().strip(),
        reserved_attempts=plan.attempts,
        epsilon_reserved=decimal(plan.epsilon),
        delta=decimal(plan.delta),
    )


def _book(desk: Desk, row: RunRow, resolved: Resolved) -> RunRow:
    """Write the reservation. The budget was checked outside the transaction; what came since sends us back."""
    while True:
        afforded = afford(desk.ledger, resolved)
        with desk.decide(resolved.policy) as tx:
            require_active(tx.datasets.get(row.dataset_id))
            if any(other.name == row.name for other in tx.runs.list()):
                raise Busy(f"another run took the name {row.name} meanwhile; nothing was reserved", hint="try again")
            if BudgetSnapshot.read(tx) == afforded.snapshot:
                tx.runs.add(row)
                tx.append(_state_reservation(row, resolved, afforded))
                if key := current_key(tx):  # before training: a key chosen afterwards would prove nothing
                    tx.append(state_commitment(row.id, key, resolved.model.sha256))
                return row


def _state_reservation(row: RunRow, resolved: Resolved, afforded: Afforded) -> RunReserved:
    return RunReserved(
        run_id=row.id,
        dataset_id=row.dataset_id,
        model_id=row.model_id,
        spec_sha256=row.spec_sha256,
        plan=state_plan(resolved.plan),
        **afforded.facts(),
        **state_gates(resolved.run),
    )


def state_plan(plan: PrivacyPlan) -> PlanFacts:
    """State a plan as the entry of its reservation does."""
    return PlanFacts(
        unit=plan.unit.kind.value,
        max_records=plan.unit.max_records,
        neighbouring=plan.neighbouring,
        declared_units=plan.declared_units,
        expected_batch_size=plan.expected_batch_size,
        sample_rate=sample_rate_text(plan.sample_rate),
        steps=plan.steps,
        attempts=plan.attempts,
        max_grad_norm=decimal(plan.max_grad_norm),
        clipping=plan.clipping,
        noise_multiplier=decimal(plan.noise_multiplier),
        epsilon=decimal(plan.epsilon),
        delta=decimal(plan.delta),
        sampler_delta=decimal(plan.sampler_delta),
        accountant=plan.accountant,
        **_state_what_some_have(plan),
    )


def _state_what_some_have(plan: PrivacyPlan) -> dict[str, Any]:
    split = {"split": plan.unit.split} if plan.unit.split else {}
    return {**curriculum.state_phases(plan), **split}


def _job(home: Home, run_id: str, resolved: Resolved, engine: EngineOptions) -> TrainJob:
    dataset, run = resolved.dataset, resolved.run
    return TrainJob(
        run_id=run_id,
        plan=resolved.plan,
        lora=run.lora,
        train=run.train_spec,
        engine=engine,
        isolation=resolved.policy.rules(dataset.class_).isolation,
        model_id=resolved.model.id,
        model_dir=str(home.model(resolved.model.sha256)),
        model_sha256=resolved.model.sha256,
        dataset=SealedObject(
            dataset_id=dataset.id,
            path=str(home.object(dataset.object_blake3)),
            blake3=dataset.object_blake3,
            wrapped_key=dataset.wrapped_key,
            key_epoch=dataset.key_epoch,
        ),
        agent_socket=str(home.agent_socket),
    )
