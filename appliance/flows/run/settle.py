"""Settle a run: read its journal, charge the attempts, close the row. Idempotent; the only place that charges.

A reservation is charged in full until it is settled, so a crash anywhere over-charges and never under-charges.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import ApplianceError, IntegrityError
from appliance.events.run import RunAborted, RunEnded, RunFailed, RunSettled
from appliance.events.states import RunState
from appliance.files import fsync_tree
from appliance.flows import launch
from appliance.flows.budget import sample_rate_text
from appliance.flows.catalog import find_run, plan_of
from appliance.flows.desk import Desk, error_facts
from appliance.flows.home import Home
from appliance.flows.passing import passing_directory
from appliance.flows.run import curriculum
from appliance.flows.run.following import recorded, unseen
from appliance.jobs.account import AccountJob, PrivacySpent
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.rundir import RunDir
from appliance.jobs.train import TrainResult
from appliance.ledger.rows import RunRow
from appliance.privacy import journal
from appliance.privacy.accounting import charged_epsilon, composition, epsilon_pld
from appliance.privacy.course import epsilon_curve, odds_bound
from appliance.privacy.schedule import follows
from appliance.store.trees import tree_digest
from appliance.values import decimal, round_up


def settle(
    desk: Desk, run: RunRow, outcome: TrainResult | ApplianceError | None, *, asked: int | None = None
) -> RunRow:
    """Charge `run` for its attempts and close it: finished with a result, failed with an error, aborted with neither.

    Args:
      desk: where it is written.
      run: the run, with what was recorded of it last.
      outcome: what came of it.
      asked: the highest attempt that its worker asked this process for; None where nobody stood beside it to its end.

    Returns:
      The settled row; the row as it is if the run was settled before.
    """
    if not run.state.open:
        return run
    plan = plan_of(run)
    run_dir = desk.home.run(run.id)
    attempts = _attempts(desk, run, asked)
    result = outcome if isinstance(outcome, TrainResult) else None
    if result is not None and result.attempts > attempts:
        raise IntegrityError("the worker reports more attempts than its journal holds", where=run.id)
    spent = result.spent if result is not None and result.attempts == attempts else _account(desk.home, plan, attempts)
    _confirm(plan, spent)
    epsilon = charged_epsilon(spent.epsilon_pld, spent.epsilon_prv)
    adapter = _adapter_digest(run_dir, result)
    ended = _state_end(run, plan, spent, epsilon, outcome)
    with desk.transact(run.policy_sha256) as tx:
        tx.runs.update(
            run,
            state=ended.state,
            charged_attempts=attempts,
            epsilon_charged=round_up(epsilon),
            epsilon_gap=decimal(max(0.0, spent.epsilon_prv - spent.epsilon_pld)),
            adapter_sha256=adapter,
        )
        tx.append(ended)
    run_dir.clear(run_dir.tmp, run_dir.snapshots, run_dir.ranks, run_dir.tickets)
    return find_run(desk.ledger, run.id)


def _attempts(desk: Desk, run: RunRow, asked: int | None) -> int:
    """Count the attempts to charge: none before the first start (no key was released), else what the journal shows.

    Where nobody stood beside the worker to its end, what it may have made unseen is charged too.
    """
    if run.state == RunState.RESERVED:
        return 0
    run_dir = desk.home.run(run.id)
    state = journal.read(run_dir.journal, run.id)
    whole = is_undamaged(run_dir, run) and state is not None and state.attempts >= (asked or 0)
    hidden = unseen(desk.ledger, run.id) if asked is None else 0
    return journal.charge(state if whole else None, run.reserved_attempts, recorded(run), hidden)


def is_undamaged(run_dir: RunDir, run: RunRow) -> bool:
    """Tell whether the job is the reserved one, and the journal whole, a continuation of the recorded one, and true.

    A journal is not true if it tells of other steps than the plan has, or other files of the run prove more of them.
    """
    state, plan = journal.read(run_dir.journal, run.id), plan_of(run)
    if state is None or not journal.continues(state, recorded(run)) or not run_dir.holds_job(run.spec_sha256):
        return False
    return follows(plan, state.made) and state.attempts >= run_dir.proven_steps(plan.steps)


def _account(home: Home, plan: PrivacyPlan, attempts: int) -> PrivacySpent:
    """Ask a worker what both accountants say of `attempts`: Opacus needs torch, and only workers load it."""
    if attempts == 0:
        return PrivacySpent(attempts=0, epsilon_pld=0.0, epsilon_prv=0.0, epsilon_rdp=0.0, delta=plan.delta)
    with passing_directory(home, "account") as run_dir:
        run_dir.write_job(AccountJob(run_id=run_dir.name, plan=plan, attempts=attempts))
        return launch.run_worker(run_dir, PrivacySpent)


def _confirm(plan: PrivacyPlan, spent: PrivacySpent) -> None:
    """Compare the control plane's own PLD with the worker's; of PRV the worker's word is taken, if it is near."""
    own = epsilon_pld(composition(plan, spent.attempts), plan.delta - plan.sampler_delta)
    if spent.epsilon_pld != own:
        raise IntegrityError(f"the worker accounts epsilon {spent.epsilon_pld:.4f} where {own:.4f} is right")


def _adapter_digest(run_dir: RunDir, result: TrainResult | None) -> str | None:
    if result is None:
        return None
    fsync_tree(run_dir.adapter)
    digest, _ = tree_digest(run_dir.adapter)
    if digest != result.adapter_sha256:
        raise ApplianceError("the adapter is not the one the worker reported", where=str(run_dir.adapter))
    return digest


def _state_end(
    run: RunRow, plan: PrivacyPlan, spent: PrivacySpent, epsilon: float, outcome: TrainResult | ApplianceError | None
) -> RunEnded:
    """Say what the run was charged and what it came to."""
    charged: dict[str, Any] = {
        "run_id": run.id,
        "dataset_id": run.dataset_id,
        "attempts": spent.attempts,
        "epsilon_pld": decimal(spent.epsilon_pld),
        "epsilon_prv": decimal(spent.epsilon_prv),
        "epsilon_rdp": decimal(spent.epsilon_rdp),
        "epsilon_charged": round_up(epsilon),
        "delta": decimal(plan.delta),
        "sampler_delta": decimal(plan.sampler_delta),
        "noise_multiplier": decimal(plan.noise_multiplier),
        "sample_rate": sample_rate_text(plan.sample_rate),
        **curriculum.spent_facts(plan, spent.attempts),
    }
    if outcome is None:
        return RunAborted(**charged)
    if isinstance(outcome, ApplianceError):
        return RunFailed(**charged, **error_facts(outcome))
    return RunSettled(
        **charged,
        steps=outcome.steps,
        adapter_sha256=outcome.adapter_sha256,
        isolation=outcome.isolation.model_dump(),
        libraries=dict(outcome.libraries),
        epsilon_curve=[(place, decimal(value)) for place, value in epsilon_curve(plan, spent.attempts)],
        odds_bound=odds_bound(round_up(epsilon)),
    )
