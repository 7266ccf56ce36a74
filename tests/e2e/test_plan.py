"""`train plan`: a complete file, a forecast, and a refusal of what does not fit, all before data is opened."""

from __future__ import annotations

from pathlib import Path

from appliance.policy import run_file
from tests.e2e.conftest import Appliance
from tests.fault.test_train_crash import facts

ASKED = ("train", "plan", "notes", "tiny", "--epsilon", "4")


def test_a_plan_tells_memory_time_and_what_else_could_be_chosen(sealed: Appliance, tmp_path: Path) -> None:
    for path in (sealed.home / "objects").iterdir():
        path.unlink()  # no data is opened: none is there
    out = tmp_path / "run.yaml"
    said = sealed.json(*ASKED, "--out", str(out))
    parts = dict(said["memory_bytes"])
    assert parts.pop("total") == sum(parts.values())
    assert 0 < said["seconds"][0] < said["seconds"][1]
    asked = (4.0, said["plan"]["steps"], said["plan"]["expected_batch_size"])
    rows = {(r["epsilon"], r["steps"], r["expected_batch_size"]): r for r in said["alternatives"]}
    assert len(rows) == 12
    assert rows[asked]["noise_multiplier"] * 0.98 < said["plan"]["noise_multiplier"]
    assert rows[asked]["noise_multiplier"] * 1.02 > said["plan"]["noise_multiplier"]
    assert rows[(8.0, *asked[1:])]["noise_per_unit"] < rows[asked]["noise_per_unit"]
    run = run_file.parse(out.read_bytes(), "run.yaml")
    assert run_file.render(run) == out.read_text() == said["run_file"]
    assert run.engine.physical_tokens == said["physical_tokens"] == 1024


def test_what_does_not_fit_is_refused_before_anything_is_reserved(appliance: Appliance, run_file: Path) -> None:
    refused = appliance(*ASKED, "--memory", "0.3", expect=9)
    assert "MiB of memory" in refused.err
    assert "nothing short of a smaller model would fit" in refused.err
    small = appliance("train", "start", str(run_file), "--memory", "0.3", expect=9)
    assert "MiB of memory" in small.err
    assert appliance.json("ledger", "log", "--type", "run.reserved")["entries"] == []
    assert [refusal["code"] for refusal in facts(appliance, "run.refused")] == [9]
    appliance("--dry-run", "train", "start", str(run_file), "--memory", "1000")


def test_figures_for_a_gpu_are_labelled_as_estimates(sealed: Appliance) -> None:
    shown = sealed(*ASKED, "--device", "cuda").out
    assert "an estimate for a GPU" in shown
    assert sealed.json(*ASKED, "--device", "cuda")["memory_is_an_estimate_for_a_gpu"] is True
