"""`appliance audit`: selftest."""

from __future__ import annotations

import typer

from appliance.cli import render, settings
from appliance.cli.train import DeviceOption, DtypeOption, RunFileArgument

app = typer.Typer(name="audit", help="Empirical checks of the privacy mechanism.", no_args_is_help=True)


@app.callback()
def _noun() -> None:
    """Empirical checks of the privacy mechanism."""


@app.command()
def selftest(
    context: typer.Context, run_file: RunFileArgument, device: DeviceOption = "cpu", dtype: DtypeOption = "auto"
) -> None:
    """Test the engine as `train start` does before a run: replay and noise, on synthetic data. No key is needed."""
    from appliance.flows import plan
    from appliance.flows import selftest as flow
    from appliance.flows.machine import engine_options

    chosen = settings.writing(context)
    home, run = chosen.home(), plan.load(run_file)
    engine = engine_options(device, dtype, physical_tokens=None, threads=0)
    tested = flow.on_demand(home, run, engine, chosen.operator())
    cells = [(check.name, check.value, check.bound, str(check.count)) for check in tested.checks]
    lines = [*render.table(("check", "seen", "bound", "of"), cells), flow.summary(tested)]
    document = {
        "run": tested.run_id,
        "entry": tested.entry,
        "passed": tested.passed,
        "checks": [check.model_dump() for check in tested.checks],
    }
    render.result(chosen, "audit.selftest", document, lines)
