"""How runs are printed: one run, what it was charged, what it guarantees, and the plan of one that is not yet made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.cli import planning, render, spending
from appliance.flows.budget import Afforded
from appliance.flows.home import Home
from appliance.flows.run import selftest
from appliance.flows.run.following import Step
from appliance.flows.run.listing import Listed
from appliance.flows.run.plan import Resolved
from appliance.flows.run.progress import guarantee, spent_text, unit_words
from appliance.ledger.rows import RunRow


def watch(bar: render.Bar) -> Callable[[Step], None]:
    """Show the steps of a run, and what they have spent, on a bar."""

    def show(step: Step) -> None:
        bar.update(step.steps, step.plan.steps, spent_text(step))

    return show


def document(row: RunRow) -> dict[str, Any]:
    """Describe a run for --json."""
    return {
        "run": row.id,
        "name": row.name,
        "state": row.state,
        "dataset": row.dataset_id,
        "model": row.model_id,
        "reserved_attempts": row.reserved_attempts,
        "charged_attempts": row.charged_attempts,
        "epsilon_reserved": row.epsilon_reserved,
        "epsilon_charged": row.epsilon_charged,
        "delta": row.delta,
        "adapter_sha256": row.adapter_sha256,
    }


def charged_line(row: RunRow) -> str:
    """Say what an ended run was charged."""
    return f"{row.id} is {row.state}: {row.charged_attempts} attempts charged, epsilon {row.epsilon_charged}"


def settled_lines(home: Home, row: RunRow) -> list[str]:
    """Say what became of a run, with its guarantee and its adapter where it has one."""
    if row.epsilon_charged is None:
        return [f"{row.id} is {row.state}"]
    made = [guarantee(row), f"adapter: {home.run(row.id).adapter}"] if row.adapter_sha256 else []
    return [charged_line(row), *made]


def tested_lines(home: Home, row: RunRow) -> list[str]:
    """Say what the engine's self-test came to."""
    tested = selftest.latest(home, row.id)
    return [selftest.summary(tested)] if tested else []


def table(listed: list[Listed]) -> list[str]:
    """Show all runs, one a line."""
    head = ("run", "name", "state", "steps", "attempts", "epsilon reserved", "epsilon charged")
    cells = [
        (
            one.row.id, one.row.name, one.state,
            f"{one.step.steps}/{one.step.plan.steps}", f"{one.step.attempts}/{one.step.plan.attempts}",
            one.row.epsilon_reserved, one.row.epsilon_charged or "-",
        )
        for one in listed
    ]  # fmt: skip
    return render.table(head, cells) if cells else ["no runs yet"]


def plan_document(resolved: Resolved) -> dict[str, Any]:
    """Describe the plan of a run for --json."""
    plan = resolved.plan.model_dump(mode="json")
    return {
        "plan": plan,
        "trainable_parameters": resolved.parameters,
        "dataset": resolved.dataset.id,
        "conversations": dict(resolved.conversations),
    }


def plan_lines(resolved: Resolved, afforded: Afforded) -> list[str]:
    """Describe the plan of a run, and what it leaves of the lifetime budget."""
    plan = resolved.plan
    return render.fields(
        [
            ("guarantee", f"({plan.epsilon:g}, {plan.delta:.3g})-DP, unit of privacy: {unit_words(plan.unit)}"),
            ("noise multiplier", f"{plan.noise_multiplier:.4f} at clip norm {plan.max_grad_norm:g} ({plan.clipping})"),
            *(("sampling", line) for line in planning.sampling(plan)),
            *(("template", line) for line in planning.template(resolved.conversations, resolved.run.template.from_)),
            ("adapter", f"{resolved.parameters} parameters on {resolved.model.id}"),
            ("lifetime budget", spending.afforded_line(afforded)),
        ]
    )
