"""`appliance audit`: selftest."""

from __future__ import annotations

from typing import Any

import typer

from appliance.cli import render, settings
from appliance.cli.options import DeviceOption, DtypeOption, RunFileArgument
from appliance.flows.run.hardware import engine_options
from appliance.flows.run.plan import load
from appliance.flows.run.selftest import Tested, on_demand, summary

app = typer.Typer()


@app.command()
def selftest(
    context: typer.Context, run_file: RunFileArgument, device: DeviceOption = "cpu", dtype: DtypeOption = "auto"
) -> None:
    """Test the engine as `train start` does before a run: replay and noise, on synthetic data. No key is needed."""
    chosen = settings.writing(context)
    home, run = chosen.home(), load(run_file)
    engine = engine_options(device, dtype, physical_tokens=None, threads=0)
    tested = on_demand(home, run, engine, chosen.operator())
    render.result(chosen, "audit.selftest", _document(tested), _lines(tested))


def _lines(tested: Tested) -> list[str]:
    cells = [(check.name, check.value, check.bound, str(check.count)) for check in tested.checks]
    return [*render.table(("check", "seen", "bound", "of"), cells), summary(tested)]


def _document(tested: Tested) -> dict[str, Any]:
    return {
        "run": tested.run_id,
        "entry": tested.entry,
        "passed": tested.passed,
        "checks": [check.model_dump() for check in tested.checks],
    }
