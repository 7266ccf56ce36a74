"""`make accept-gpu`: its checks run on the CPU, find faults, and say so where there is no GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[3] / "bench" / "accept.py"


@pytest.fixture(scope="module")
def accept() -> Any:
    spec = importlib.util.spec_from_file_location("accept", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accept"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("fixed_keys")
def test_every_check_passes_on_the_cpu(accept: Any, tiny_model_dir: Path) -> None:
    machine = accept.Machine("cpu", tiny_model_dir)
    outcomes = [accept.outcome(name, machine) for name in accept.CHECKS]
    assert [(o.name, o.detail) for o in outcomes if o.state != "passed"] == []
    made = accept.document(outcomes, [], "cpu")
    assert made["accepted"]
    assert json.loads(json.dumps(made))["checks"][0]["state"] == "passed"


def test_without_cuda_nothing_is_run_and_nothing_accepted(
    accept: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("not run: this machine has CUDA")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    status = accept.main()
    said = capsys.readouterr()
    made = json.loads(said.out)
    assert status == 3
    assert not made["accepted"]
    assert {check["state"] for check in made["checks"]} == {"not run"}
    assert said.err.count("not run") == len(made["checks"])


def test_the_way_of_a_user_is_gone_and_its_end_is_in_the_ledger(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The whole path on the CPU, in the sandboxed worker; what was left out leaves the machine not accepted."""
    out = tmp_path / "accept.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--only", "journey", "--model", str(tiny_model_dir)]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    made = json.loads(out.read_text())
    taken = {check["name"]: check["state"] for check in made["checks"] if check["name"].startswith("user_")}
    assert set(taken.values()) == {"passed"}, done.stderr
    assert {"user_train_start", "user_watermark_embed", "user_evaluate", "user_bundle_verified"} < taken.keys()
    assert done.returncode == 3
    assert not made["accepted"]
    assert f"not accepted: {len(taken)} of {len(made['checks'])} checks passed" in done.stderr


def test_after_a_step_that_fails_no_other_is_taken(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT.with_name("journey.py")), "--device", "cpu", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    states = [line.split()[0] for line in done.stdout.splitlines()]
    assert states[:4] == ["passed", "passed", "passed", "failed"], done.stdout
    assert set(states[4:]) == {"not"}
    assert "exit status 11" in done.stdout or "exit status 6" in done.stdout
    assert done.returncode == 1


def test_faults_of_a_device_are_found(accept: Any, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = accept.Machine("cpu", tiny_model_dir)

    def state(name: str) -> str:
        found: str = accept.outcome(name, machine).state
        return found

    with monkeypatch.context() as patch:  # products with the 10 bits of TF32
        product = torch.Tensor.__matmul__

        def short(a: Any, b: Any) -> Any:
            return product(a.half().float(), b.half().float()) if a.dtype == torch.float32 else product(a, b)

        patch.setattr(torch.Tensor, "__matmul__", short)
        assert state("full_float32") == "failed"
    with monkeypatch.context() as patch:
        draw = accept.DiscreteGaussian.draw
        patch.setattr(accept.DiscreteGaussian, "draw", lambda self, count: draw(self, count) * 11 // 10)
        assert state("noise") == "failed"
    with monkeypatch.context() as patch:
        adapt = accept.adapt

        def wrong_scale(*given: Any) -> Any:
            made = adapt(*given)
            made.sites[3].scale *= 1.01
            return made

        patch.setattr(accept, "adapt", wrong_scale)
        assert state("exact_float32") == "failed"
