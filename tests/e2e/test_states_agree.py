"""A run is in one state, whichever verb says it: here one whose supervisor has died."""

from __future__ import annotations

import json

import pytest

from appliance.cli.app import run
from appliance.events.catalog import event
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from tests.e2e.conftest import Appliance
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN, run_of


def test_status_budget_and_export_agree(sealed: Appliance, capsys: pytest.CaptureFixture[str]) -> None:
    with Desk.open(Home.open(sealed.home), Operator()) as desk:
        with desk.ledger.read() as rows:
            dataset, model = rows.datasets.list()[0], rows.models.list()[0]
        row = run_of(PLAN, id="run_dead", dataset_id=dataset.id, model_id=model.id, state="running")
        with desk.transact() as tx:
            tx.runs.add(row)
            tx.append(event("run.reserved", facts_of("run.reserved", run_id=row.id, dataset_id=dataset.id)))

    def say(*words: str) -> str:
        run(["--home", str(sealed.home), *words])
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert json.loads(say("train", "status", "--json"))["runs"][0]["state"] == "interrupted"
    (budget,) = json.loads(say("budget", "show", "--json"))["budgets"]
    assert budget["runs"][0]["state"] == "interrupted"
    for words in (("train", "status"), ("budget", "show"), ("export", "bundle", "run_dead", "--out", "x")):
        assert "interrupted" in say(*words), words
