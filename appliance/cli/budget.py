"""`appliance budget`: show."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from appliance.cli import render, settings
from appliance.flows.budget import Account, accounts
from appliance.flows.catalog import choose_dataset

app = typer.Typer()


@app.command()
def show(
    context: typer.Context, dataset: Annotated[str | None, typer.Argument(help="Name or id; all if omitted.")] = None
) -> None:
    """Show what runs and evaluations have spent of each dataset's lifetime epsilon, failed ones included."""
    chosen = settings.of(context)
    found = accounts(chosen.home())
    if dataset is not None:
        row = choose_dataset([account.dataset for account in found], dataset)
        found = [account for account in found if account.dataset.id == row.id]
    lines = [line for account in found for line in _lines(account)]
    render.result(chosen, "budget.show", {"budgets": [*map(_document, found)]}, lines or ["no datasets yet"])


def _document(account: Account) -> dict[str, Any]:
    return {
        "dataset": account.dataset.id,
        "name": account.dataset.name,
        "cap_epsilon": account.cap.epsilon,
        "cap_delta": account.cap.delta,
        "spent_epsilon": account.spent,
        "reserved_epsilon": account.reserved,
        "runs": [
            {"run": run.id, "state": run.state, "charged": run.epsilon_charged, "reserved": run.epsilon_reserved}
            for run in account.runs
        ],
        "evaluations": [
            {"evaluation": row.id, "run": row.run_id, "state": row.state, "charged": row.epsilon}
            for row in account.evaluations
        ],
    }


def _lines(account: Account) -> list[str]:
    lines = [
        f"{account.dataset.name} ({account.dataset.id})",
        f"  {_gauge(account.reserved, account.cap.epsilon, account.cap.delta)}",
    ]
    if account.reserved > account.spent:
        lines.append(f"  spent {account.spent:.3f}; the difference is reserved by runs that are not settled")
    lines += [f"  {run.id}  {run.state}  charged {run.epsilon_charged or '-'}" for run in account.runs]
    lines += [f"  {row.id} of {row.run_id}  {row.state}  charged {row.epsilon}" for row in account.evaluations]
    return lines


def _gauge(spent: float, cap: float, delta: float, width: int = 30) -> str:
    filled = min(width, round(width * spent / cap))
    return f"[{'#' * filled}{'.' * (width - filled)}] epsilon {spent:.3f} of {cap:g} at delta {delta:.3g}"
