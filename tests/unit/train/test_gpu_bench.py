"""The training bench of a GPU runs without one, on a tiny model, and keeps to its budget of time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[3] / "bench" / "train.py"


def figures(*options: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "--model-shape", "tiny", "--quick", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert all(figure["name"] in done.stderr for figure in found["figures"]), "a figure is printed when it is known"
    return {figure["name"]: figure for figure in found["figures"]}


def test_it_measures_both_sides_on_weights_that_are_made_once() -> None:
    found = figures("--only", "steps,norms")
    assert found["step_time_ratio_plain_bf16_tiny"]["value"] > 0
    assert found["tokens_per_s_tiny"]["value"] > 0
    assert 0 < found["bf16_share_tiny"]["value"] < 1
    assert found["peak_memory_ratio_plain_tiny"]["note"] == "not run: only on a GPU"
    assert found["per_sample_norm_rel_error_tiny"]["value"] < 1e-5


def test_what_the_budget_leaves_no_time_for_is_said() -> None:
    found = figures("--budget", "0.1")
    assert {figure["note"] for figure in found.values()} == {"not run: time"}
    assert {"steps_tiny", "opacus_ghost_tiny", "noise_tiny", "proof_tiny", "epoch_hf_trainer_tiny"} < found.keys()
