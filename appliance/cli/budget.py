"""`appliance budget`: show."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance.cli import render, settings

app = typer.Typer(name="budget", help="The lifetime privacy budget of every dataset.", no_args_is_help=True)


@app.callback()
def _noun() -> None:
    """The lifetime privacy budget of every dataset."""


@app.command()
def show(
    context: typer.Context, dataset: Annotated[str | None, typer.Argument(help="Name or id; all if omitted.")] = None
) -> None:
    """Show what runs and evaluations have spent of each dataset's lifetime epsilon, failed ones included."""
    from appliance.flows import budget as flow
    from appliance.flows import data

    chosen = settings.of(context)
    accounts = flow.accounts(chosen.home())
    if dataset is not None:
        row = data.find([account.dataset for account in accounts], dataset)
        accounts = [account for account in accounts if account.dataset.id == row.id]
    lines, documents = [], []
    for account in accounts:
        runs = [
            {"run": run.id, "state": run.state, "charged": run.epsilon_charged, "reserved": run.epsilon_reserved}
            for run in account.runs
        ]
        evaluations = [
            {"evaluation": row.id, "run": row.run_id, "state": row.state, "charged": row.epsilon}
            for row in account.evaluations
        ]
        documents.append(
            {
                "dataset": account.dataset.id,
                "name": account.dataset.name,
                "cap_epsilon": account.cap.epsilon,
                "cap_delta": account.cap.delta,
                "spent_epsilon": account.spent,
                "reserved_epsilon": account.reserved,
                "runs": runs,
                "evaluations": evaluations,
            }
        )
        lines += [
            f"{account.dataset.name} ({account.dataset.id})",
            f"  {_gauge(account.reserved, account.cap.epsilon, account.cap.delta)}",
        ]
        if account.reserved > account.spent:
            lines.append(f"  spent {account.spent:.3f}; the difference is reserved by runs that are not settled")
        lines += [f"  {run['run']}  {run['state']}  charged {run['charged'] or '-'}" for run in runs]
        lines += [
            f"  {one['evaluation']} of {one['run']}  {one['state']}  charged {one['charged']}" for one in evaluations
        ]
    render.result(chosen, "budget.show", {"budgets": documents}, lines or ["no datasets yet"])


def _gauge(spent: float, cap: float, delta: float, width: int = 30) -> str:
    filled = min(width, round(width * spent / cap))
    return f"[{'#' * filled}{'.' * (width - filled)}] epsilon {spent:.3f} of {cap:g} at delta {delta:.3g}"
