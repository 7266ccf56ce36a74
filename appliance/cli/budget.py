"""`appliance budget`: show."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance.cli import completing, render, settings, spending
from appliance.flows.budget import accounts
from appliance.flows.catalog import choose_dataset

app = typer.Typer()


@app.command()
def show(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Argument(help="Name or id; all if omitted.", autocompletion=completing.datasets)
    ] = None,
) -> None:
    """Show what runs and evaluations have spent of each dataset's lifetime epsilon, failed ones included.

    Two readings: by a Rényi filter, and by privacy loss distributions. Which decides is said.
    """
    chosen = settings.of(context)
    home = chosen.home()
    found = accounts(home)
    if dataset is not None:
        row = choose_dataset([account.dataset for account in found], dataset)
        found = [account for account in found if account.dataset.id == row.id]
    lines = [line for account in found for line in spending.account_lines(home, account)]
    document = {"budgets": [spending.account_document(home, account) for account in found]}
    render.result(chosen, "budget.show", document, lines or ["no datasets yet"])
