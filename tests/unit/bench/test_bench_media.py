"""A bench says what it could not measure, and why; it prints no figure that its size cannot give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / f"{script}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("call", ["media.model(Path(sys.argv[1]) / 'model', Path(sys.argv[1]))",
                                  "media.reviews('Train', 1, Path(sys.argv[1]))"])  # fmt: skip
def test_what_was_not_fetched_is_named(call: str, tmp_path: Path) -> None:
    script = f"import sys; from pathlib import Path; sys.path.insert(0, {str(BENCH)!r}); import media; {call}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("not run: ")
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_quick_run_gives_no_ratio_of_peaks() -> None:
    done = run("train", "--quick", "--json", "--only", "peak_memory_ratio_plain")
    assert done.returncode == 0, done.stderr
    (figure,) = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert (figure["value"], figure["note"]) == (None, "not run: only without --quick")
