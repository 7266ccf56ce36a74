"""Killed at random points and resumed, a run ends with the very bits of one that was never killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.timeout(7200)  # the full count on a busy machine
def test_killed_at_random_a_run_ends_with_the_same_bits(
    tiny_model_dir: Path, tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    kills = stress_count(12, 100)
    command = [sys.executable, "-m", "tests.fault.lives", str(tiny_model_dir), str(tmp_path), str(kills), "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sys.stdout.write(f"{found}\n")
    assert found["killed"] >= kills
    assert found["runs"] >= 2
    assert found["lost"] > 0, "no kill lost a step: they all came between two"
    assert len(found["ends"]) == 1, found
    assert found["ends"][0].startswith("37 ")
