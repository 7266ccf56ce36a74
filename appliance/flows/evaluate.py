"""`evaluate run`: what an adapter gains on held-out data, paid from the budget of those data.

    checks -> reserved and started in one signed transaction -> worker -> settled or failed

From its reservation on an evaluation costs all of its epsilon, whatever becomes of it: there is nothing to be given
back once the key was released. So no state is ever refunded, and closing an evaluation whose process died only says so.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BudgetExceeded, Interrupted, PolicyDenied
from appliance.flows import budget, gpus, jobs
from appliance.flows.agent import evidence_for
from appliance.flows.evaluable import Evaluable, find_evaluable
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.keys import require_unsealed
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import EvaluationRow
from appliance.privacy.evaluation import charge, read_release
from appliance.records import EvaluateJob, EvaluateResult, SealedObject, decimal, rounded_up, to_json
from appliance.store.files import make_directory, write_atomic

PUBLIC_TOKENS = 8000
"""Next-token predictions on public text unless more are asked for."""

Watch = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation that ended well.

    Attributes:
      row: as the ledger has it.
      facts: of `evaluation.settled`.
      before: lifetime epsilon of the dataset before it.
      after: and with it.
      cap: the dataset's cap.
    """

    row: EvaluationRow
    facts: dict[str, Any]
    before: float
    after: float
    cap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an evaluation would cost: nothing was reserved and nothing was opened."""

    evaluable: Evaluable
    epsilon: float
    before: float
    after: float
    cap: float


def preview(home: Home, run_id: str, dataset: str, epsilon: float) -> Cost:
    """`evaluate run` with --dry-run. Raises what `evaluate` raises before it reserves."""
    with home.ledger(writable=False) as ledger:
        found = find_evaluable(ledger, home, run_id, dataset, epsilon)
        _, before, after = budget.afford(ledger, found.policy, budget.spend_of_evaluation(_row("(new)", found)))
    return Cost(evaluable=found, epsilon=charge(found.plan), before=before, after=after, cap=_cap(found))


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
    with home.ledger() as ledger:
        actor = home.actor(operator)
        close_dead(home, ledger, actor)
        with _refusals_recorded(ledger, actor):
            found = find_evaluable(ledger, home, run_id, dataset, epsilon)
            budget.afford(ledger, found.policy, budget.spend_of_evaluation(_row("(new)", found)))
        require_unsealed(home)
        found.check_files()
        gpus.require(found.job.engine, processes=1)
        run_dir = home.runs / new_id("eval")
        make_directory(run_dir)
        with jobs.supervising(run_dir):
            with _refusals_recorded(ledger, actor), _removed_on_refusal(run_dir):
                write_atomic(run_dir / "job.json", to_json(_job(home, run_dir.name, found, public_tokens)))
                before, after = _reserve(ledger, actor, run_dir, found, operator.reason)
            result = _work(ledger, actor, run_dir, watch)
            facts = _settle(ledger, actor, run_dir, found, result)
        with ledger.read() as rows:
            row = rows.evaluations.get(run_dir.name)
    return Evaluated(row=row, facts=facts, before=before, after=after, cap=_cap(found))


def close_dead(home: Home, ledger: Ledger, actor: Actor) -> None:
    """Close evaluations whose process died before it could; they stay charged. Doing it twice changes nothing."""
    with ledger.read() as rows:
        left = [row for row in rows.evaluations.list() if row.state == "reserved"]
    for row in left:
        if jobs.supervisor_of(home.runs / row.id) is None:
            _fail(ledger, actor, row.id, Interrupted("the process died"))


@contextmanager
def _refusals_recorded(ledger: Ledger, actor: Actor) -> Iterator[None]:
    try:
        yield
    except (PolicyDenied, BudgetExceeded) as refusal:
        with ledger.transaction(actor) as tx:
            tx.append("evaluation.refused", {"code": refusal.exit_status, "reason": refusal.message})
        raise


@contextmanager
def _removed_on_refusal(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except ApplianceError:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _cap(found: Evaluable) -> float:
    return budget.cap_of(found.policy, found.dataset).epsilon


def _row(evaluation_id: str, found: Evaluable) -> EvaluationRow:
    return EvaluationRow(
        id=evaluation_id,
        run_id=found.run.id,
        dataset_id=found.dataset.id,
        state="reserved",
        policy_sha256=found.policy.digest,
        declared_units=found.plan.declared_units,
        noise_multiplier=decimal(found.plan.noise_multiplier),
        epsilon=rounded_up(charge(found.plan)),
        delta=decimal(found.plan.delta),
        sampler_delta=decimal(found.plan.sampler_delta),
    )


def _reserve(ledger: Ledger, actor: Actor, run_dir: Path, found: Evaluable, reason: str) -> tuple[float, float]:
    """Reserve and start in one transaction, so that no evaluation is reserved and never started; leave the evidence.

    The budget was checked outside the transaction; what came since sends us back.
    """
    row = _row(run_dir.name, found)
    spec_sha256 = hashlib.sha256((run_dir / "job.json").read_bytes()).hexdigest()
    while True:
        books, before, after = budget.afford(ledger, found.policy, budget.spend_of_evaluation(row))
        with ledger.transaction(actor, reason=reason or None, policy_sha256=row.policy_sha256) as tx:
            if budget.Books.read(tx) == books:
                tx.evaluations.add(row)
                facts = _reserved_facts(row, found, spec_sha256)
                facts |= {"epsilon_before": decimal(round(before, 9)), "epsilon_after": decimal(round(after, 9))}
                tx.append("evaluation.reserved", facts, subject=row.run_id)
                started = _names(row) | {"nonce": secrets.token_hex(16)}
                index = tx.append("evaluation.started", started, subject=row.run_id)
                break
    ledger.sign()
    write_atomic(run_dir / "evidence.json", evidence_for(ledger.prove(index), ledger.leaf(index)))
    return before, after


def _names(row: EvaluationRow) -> dict[str, Any]:
    return {"evaluation_id": row.id, "run_id": row.run_id, "dataset_id": row.dataset_id}


def _charged(row: EvaluationRow) -> dict[str, Any]:
    return _names(row) | {"epsilon_charged": row.epsilon, "delta": row.delta}


def _reserved_facts(row: EvaluationRow, found: Evaluable, spec_sha256: str) -> dict[str, Any]:
    return _names(row) | {
        "spec_sha256": spec_sha256,
        "declared_units": row.declared_units,
        "clip_nat": decimal(found.plan.statistic.clip_nat),
        "noise_multiplier": row.noise_multiplier,
        "epsilon": row.epsilon,
        "delta": row.delta,
        "sampler_delta": row.sampler_delta,
        "cap": decimal(_cap(found)),
    }


def _job(home: Home, evaluation_id: str, found: Evaluable, public_tokens: int) -> EvaluateJob:
    dataset, job = found.dataset, found.job
    return EvaluateJob(
        schema="appliance.job/1",
        run_id=found.run.id,
        evaluation_id=evaluation_id,
        train=job.train,
        engine=job.engine,
        isolation=found.policy.rules(dataset.class_).isolation,
        model_dir=str(found.model_dir),
        model_sha256=job.model_sha256,
        adapter_dir=str(found.adapter_dir),
        adapter_sha256=found.adapter_sha256,
        released_dir=str(found.released_dir) if found.released_sha256 else None,
        released_sha256=found.released_sha256,
        dataset=SealedObject(
            dataset_id=dataset.id,
            path=str(home.objects / dataset.object_blake3),
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


def _work(ledger: Ledger, actor: Actor, run_dir: Path, watch: Watch) -> EvaluateResult:
    try:
        return jobs.run_worker(run_dir, EvaluateResult, watch=watch)
    except KeyboardInterrupt:
        _fail(ledger, actor, run_dir.name, Interrupted("interrupted"))
        raise Interrupted("the evaluation was interrupted; it is charged in full") from None
    except ApplianceError as failure:
        _fail(ledger, actor, run_dir.name, failure)
        raise
    finally:
        shutil.rmtree(run_dir / "tmp", ignore_errors=True)


def _fail(ledger: Ledger, actor: Actor, evaluation_id: str, failure: ApplianceError) -> None:
    with ledger.transaction(actor) as tx:
        row = tx.evaluations.get(evaluation_id)
        if row.state != "reserved":
            return  # somebody else closed it
        tx.evaluations.update(row.id, state="failed")
        facts = _charged(row) | {"code": failure.exit_status, "reason": type(failure).__name__}
        tx.append("evaluation.failed", facts, subject=row.run_id)
    ledger.sign()


def _settle(ledger: Ledger, actor: Actor, run_dir: Path, found: Evaluable, result: EvaluateResult) -> dict[str, Any]:
    """Turn the noised sum into gains and intervals, and close the evaluation with them."""
    gains = read_release(found.plan, result.released)
    comparisons = [
        {
            "name": name,
            "gain_nat": decimal(round(gain.gain, 6)),
            "low": decimal(round(gain.low, 6)),
            "high": decimal(round(gain.high, 6)),
            "noise_std": decimal(round(found.plan.noise_nat, 6)),
        }
        for name, gain in zip(found.names, gains, strict=True)
    ]
    with ledger.transaction(actor, policy_sha256=found.policy.digest) as tx:
        row = tx.evaluations.update(run_dir.name, state="settled")
        facts = _charged(row) | {
            "declared_units": row.declared_units,
            "comparisons": comparisons,
            "released": list(result.released),
            "public": dict(result.public),
            "isolation": result.isolation.model_dump(),
            "libraries": dict(result.libraries),
        }
        tx.append("evaluation.settled", facts, subject=row.run_id)
    ledger.sign()
    return facts
