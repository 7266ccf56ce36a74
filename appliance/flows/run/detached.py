"""Go on with a run in a process of its own, which outlives the terminal."""

from __future__ import annotations

import os
import subprocess

from appliance.flows.home import Home, Operator
from appliance.isolation import interpreter


def resume(home: Home, run_id: str, operator: Operator) -> None:
    """Start `appliance train resume RUN` in a session of its own; its JSON lines go to the run's supervisor.log."""
    # Names and reasons are personal: they go by the environment, which unlike the arguments others cannot read.
    environment = {**os.environ, "APPLIANCE_ACTOR": operator.name, "APPLIANCE_REASON": operator.reason}
    with home.run(run_id).supervisor_log.open("ab") as log:
        subprocess.Popen(
            interpreter.module("appliance", "--home", str(home.root), "--json", "train", "resume", run_id),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=interpreter.DIRECTORY,
        )
