"""`evaluate run`: what an adapter gains on held-out data, paid from the budget of those data.

    checks -> reserved and started in one signed transaction -> worker -> settled or failed

From its reservation on an evaluation costs all of its epsilon, whatever becomes of it: there is nothing to be given
back once the key was released. So no state is ever refunded, and closing an evaluation whose process died only says so.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from appliance.errors import ApplianceError, BudgetExceeded, Interrupted, PolicyDenied
from appliance.events.evaluation import (
    Comparison,
    EvaluationFailed,
    EvaluationRefused,
    EvaluationReserved,
    EvaluationSettled,
    EvaluationStarted,
)
from appliance.events.states import EvaluationState
from appliance.files import make_directory, write_atomic
from appliance.flows import budget, gpus, launch
from appliance.flows.budget import Afforded
from appliance.flows.catalog import require_active
from appliance.flows.desk import Desk, error_facts
from appliance.flows.evaluation.evaluable import Evaluable, find_evaluable
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.key import require_unsealed
from appliance.jobs.evaluate import EvaluateJob, EvaluateResult
from appliance.jobs.job import SealedObject
from appliance.jobs.rundir import RunDir
from appliance.ledger.rows import EvaluationRow
from appliance.privacy.evaluation import charge, read_release
from appliance.privacy.lifetime import Spend
from appliance.values import decimal, round_up

PUBLIC_TOKENS = 8000
"""Next-token predictions on public text unless more are asked for."""

Watch = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation that ended well.

    Attributes:
      row: as the ledger has it.
      settled: the entry that says what was found.
      afforded: what it took of the dataset's lifetime budget.
    """

    row: EvaluationRow
    settled: EvaluationSettled
    afforded: Afforded


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an evaluation would cost: nothing was reserved and nothing was opened."""

    evaluable: Evaluable
    epsilon: float
    afforded: Afforded


def preview(home: Home, run_id: str, dataset: str, epsilon: float) -> Cost:
    """Do what `evaluate run` does with --dry-run. Raises what `evaluate` raises before it reserves."""
    with home.reader() as ledger:
        found = find_evaluable(ledger, home, run_id, dataset, epsilon)
        afforded = budget.afford(ledger, found.policy, _spend("(new)", found))
    return Cost(evaluable=found, epsilon=charge(found.plan), afforded=afforded)


def evaluate(
    home: Home, run_id: str, dataset: str, epsilon: float, public_tokens: int, operator: Operator, watch: Watch
) -> Evaluated:
    """Evaluate a finished run on a held-out dataset.

    Args:
      home: the home.
      run_id: the run.
      dataset: name or id of the held-out dataset.
      epsilon: what it may cost.
      public_tokens: predictions on public text; 0 for none.
      operator: who asks.
      watch: called while the worker runs.

    Raises:
      PolicyDenied: the dataset is not for evaluation, not held out from the run, or the policy does not allow this.
      BudgetExceeded: the dataset's lifetime budget, or that of one overlapping it, does not suffice.
      ApplianceError: the worker's refusal; the evaluation is charged all the same.
    """
    with Desk.open(home, operator) as desk:
        close_dead(desk)
        with desk.refusals(EvaluationRefused, PolicyDenied, BudgetExceeded):
            found = find_evaluable(desk.ledger, home, run_id, dataset, epsilon)
            budget.afford(desk.ledger, found.policy, _spend("(new)", found))
        require_unsealed(home)
        found.check_files()
        gpus.require(found.job.engine, processes=1)
        run_dir = home.run(new_id("eval"))
        make_directory(run_dir.path)
        with launch.supervising(run_dir):
            with desk.refusals(EvaluationRefused, PolicyDenied, BudgetExceeded), _removed_on_refusal(run_dir):
                spec_sha256 = run_dir.write_job(_job(home, run_dir.name, found, public_tokens))
                afforded, started = _book(desk, run_dir, found, spec_sha256)
            result = _work(desk, run_dir, started, watch)
            settled = _settle(desk, run_dir, found, result)
        with desk.ledger.read() as rows:
            row = rows.evaluations.get(run_dir.name)
    return Evaluated(row=row, settled=settled, afforded=afforded)


def close_dead(desk: Desk) -> None:
    """Close evaluations whose process died before it could; they stay charged. Doing it twice changes nothing."""
    with desk.ledger.read() as rows:
        left = [row for row in rows.evaluations.list() if row.state == EvaluationState.RESERVED]
    for row in left:
        if launch.supervisor_of(desk.home.run(row.id)) is None:
            _fail(desk, row.id, Interrupted("the process died"))


@contextmanager
def _removed_on_refusal(run_dir: RunDir) -> Iterator[None]:
    try:
        yield
    except ApplianceError:
        shutil.rmtree(run_dir.path, ignore_errors=True)
        raise


def _spend(evaluation_id: str, found: Evaluable) -> Spend:
    return budget.spend_of_evaluation(_row(evaluation_id, found), found.unit)


def _row(evaluation_id: str, found: Evaluable) -> EvaluationRow:
    return EvaluationRow(
        id=evaluation_id,
        run_id=found.run.id,
        dataset_id=found.dataset.id,
        state=EvaluationState.RESERVED,
        policy_sha256=found.policy.digest,
        declared_units=found.plan.declared_units,
        noise_multiplier=decimal(found.plan.noise_multiplier),
        epsilon=round_up(charge(found.plan)),
        delta=decimal(found.plan.delta),
        sampler_delta=decimal(found.plan.sampler_delta),
    )


def _book(desk: Desk, run_dir: RunDir, found: Evaluable, spec_sha256: str) -> tuple[Afforded, int]:
    """Reserve and start in one transaction, so that no evaluation is reserved and never started; say which entry.

    The budget was checked outside the transaction; what came since sends us back.
    """
    row = _row(run_dir.name, found)
    index = None
    while index is None:
        afforded = budget.afford(desk.ledger, found.policy, _spend(row.id, found))
        with desk.decide(found.policy) as tx:
            require_active(tx.datasets.get(row.dataset_id))
            if budget.BudgetSnapshot.read(tx) == afforded.snapshot:
                tx.evaluations.add(row)
                tx.append(_state_reservation(row, found, spec_sha256, afforded))
                index = tx.append(EvaluationStarted(**_names(row), nonce=secrets.token_hex(16)))
    return afforded, index


def _names(row: EvaluationRow) -> dict[str, Any]:
    return {"evaluation_id": row.id, "run_id": row.run_id, "dataset_id": row.dataset_id}


def _state_charge(row: EvaluationRow) -> dict[str, Any]:
    return _names(row) | {"epsilon_charged": row.epsilon, "delta": row.delta}


def _state_reservation(
    row: EvaluationRow, found: Evaluable, spec_sha256: str, afforded: Afforded
) -> EvaluationReserved:
    return EvaluationReserved(
        **_names(row),
        spec_sha256=spec_sha256,
        declared_units=row.declared_units,
        clip_nat=decimal(found.plan.statistic.clip_nat),
        noise_multiplier=row.noise_multiplier,
        epsilon=row.epsilon,
        delta=row.delta,
        sampler_delta=row.sampler_delta,
        **afforded.facts(),
    )


def _job(home: Home, evaluation_id: str, found: Evaluable, public_tokens: int) -> EvaluateJob:
    dataset = found.dataset
    return EvaluateJob(
        **found.variants(),
        evaluation_id=evaluation_id,
        isolation=found.policy.rules(dataset.class_).isolation,
        dataset=SealedObject(
            dataset_id=dataset.id,
            path=str(home.object(dataset.object_blake3)),
            blake3=dataset.object_blake3,
            wrapped_key=dataset.wrapped_key,
            key_epoch=dataset.key_epoch,
        ),
        unit=found.unit,
        declared_units=found.plan.declared_units,
        noise_multiplier=found.plan.noise_multiplier,
        clip_nat=found.plan.statistic.clip_nat,
        public_tokens=public_tokens,
        agent_socket=str(home.agent_socket),
    )


def _work(desk: Desk, run_dir: RunDir, started: int, watch: Watch) -> EvaluateResult:
    try:
        write_atomic(run_dir.evidence, desk.prove(started))
        return launch.run_worker(run_dir, EvaluateResult, watch=watch)
    except KeyboardInterrupt:
        _fail(desk, run_dir.name, Interrupted("interrupted"))
        raise Interrupted("the evaluation was interrupted; it is charged in full") from None
    except ApplianceError as failure:
        _fail(desk, run_dir.name, failure)
        raise
    finally:
        run_dir.clear(run_dir.tmp)


def _fail(desk: Desk, evaluation_id: str, failure: ApplianceError) -> None:
    with desk.transact() as tx:
        row = tx.evaluations.get(evaluation_id)
        if row.state != EvaluationState.RESERVED:
            return  # somebody else closed it
        tx.evaluations.update(row, state=EvaluationState.FAILED)
        tx.append(EvaluationFailed(**_state_charge(row), **error_facts(failure)))


def _settle(desk: Desk, run_dir: RunDir, found: Evaluable, result: EvaluateResult) -> EvaluationSettled:
    """Turn the noised sum into gains and intervals, and close the evaluation with them."""
    gains = read_release(found.plan, result.released)
    comparisons = [
        Comparison(
            name=name,
            gain_nat=decimal(round(gain.gain, 6)),
            low=decimal(round(gain.low, 6)),
            high=decimal(round(gain.high, 6)),
            noise_std=decimal(round(found.plan.noise_nat, 6)),
        )
        for name, gain in zip(found.names, gains, strict=True)
    ]
    with desk.transact(found.policy.digest) as tx:
        row = tx.evaluations.update(tx.evaluations.get(run_dir.name), state=EvaluationState.SETTLED)
        settled = EvaluationSettled(
            **_state_charge(row),
            declared_units=row.declared_units,
            comparisons=comparisons,
            released=list(result.released),
            public=dict(result.public),
            isolation=result.isolation.model_dump(),
            libraries=dict(result.libraries),
        )
        tx.append(settled)
    return settled
