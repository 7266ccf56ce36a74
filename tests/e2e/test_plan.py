"""`train plan`: a complete file, a forecast, and a refusal of what does not fit, all before data is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from appliance.flows.home import Home
from appliance.flows.run import rates
from appliance.jobs.selftest import GpuRate
from appliance.policy import run_file
from tests.e2e.conftest import Appliance
from tests.fault.test_train_crash import facts
from tests.nvml import GIB, H100, SMALL, library

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
    assert rows[asked]["noise_multiplier"] == said["plan"]["noise_multiplier"]
    assert [row["chosen"] for row in rows.values()].count(True) == rows[asked]["chosen"] == 1
    assert rows[(8.0, *asked[1:])]["noise_per_unit"] < rows[asked]["noise_per_unit"]
    assert all(row["refused"] is None and (row["found"] or row["chosen"]) for row in rows.values())


def test_what_the_policy_refuses_is_marked_and_small_epsilons_are_computed(sealed: Appliance, tmp_path: Path) -> None:
    most = sealed.json("train", "plan", "notes", "tiny", "--epsilon", "8")
    refused = {row["epsilon"]: row["refused"] for row in most["alternatives"]}
    assert refused[4.0] is refused[8.0] is None
    assert "exceeds the cap 8" in refused[16.0]
    small = sealed.json("train", "plan", "notes", "tiny", "--epsilon", "0.5")
    row = next(row for row in small["alternatives"] if row["epsilon"] == 0.25 and row["steps"] > 6)
    shape = ("--steps", str(row["steps"]), "--batch", str(row["expected_batch_size"]))
    again = sealed.json("train", "plan", "notes", "tiny", "--epsilon", "0.25", *shape)
    assert again["plan"]["noise_multiplier"] == row["noise_multiplier"]


def test_a_drafted_run_file_is_complete(sealed: Appliance, tmp_path: Path) -> None:
    out = tmp_path / "run.yaml"
    said = sealed.json(*ASKED, "--out", str(out))
    run = run_file.parse(out.read_bytes(), "run.yaml")
    assert run_file.render(run) == out.read_text() == said["run_file"]
    assert run.engine.physical_tokens == said["physical_tokens"] == 1024


def test_records_longer_than_the_model_reads_are_refused_at_the_plan(sealed: Appliance) -> None:
    refused = sealed(*ASKED, "--max-tokens", "513", expect=3)
    assert "reads at most 512 tokens" in refused.err
    assert "--max-tokens" in refused.err
    assert sealed.json(*ASKED, "--max-tokens", "512")["plan"]["steps"]


def test_what_does_not_fit_is_refused_before_anything_is_reserved(appliance: Appliance, run_file: Path) -> None:
    refused = appliance(*ASKED, "--memory", "0.3", expect=9)
    assert "MiB of memory" in refused.err
    assert "nothing short of a smaller model would fit" in refused.err
    small = appliance("train", "start", str(run_file), "--memory", "0.3", expect=9)
    assert "MiB of memory" in small.err
    assert appliance.json("ledger", "log", "--type", "run.reserved")["entries"] == []
    assert [refusal["code"] for refusal in facts(appliance, "run.refused")] == [9]
    appliance("--dry-run", "train", "start", str(run_file), "--memory", "1000")


CUDA = (*ASKED, "--device", "cuda")


def test_a_gpu_is_planned_for_by_what_its_driver_says(sealed: Appliance, tmp_path: Path) -> None:
    sealed.environment = library(tmp_path, [H100, SMALL])
    said, shown = sealed.json(*CUDA), sealed(*CUDA).out
    assert said["memory_is_an_estimate_for_a_gpu"] is True
    assert " at its peak, 79.00 GiB are available on NVIDIA H100 80GB HBM3" in shown
    assert (said["gpu"], said["memory_available"]) == (H100.name, H100.free)
    assert said["host_memory_bytes"] > 1 << 30
    assert said["physical_tokens"] == 8192
    # Without torch nobody can measure a GPU here; the first self-test on it does.
    assert said["seconds"] is None
    assert said["idle_gpu"] is None
    assert "not known before a self-test has measured this GPU" in shown
    rates.keep(Home.open(sealed.home), GpuRate(name=H100.name, dtype="bfloat16", gigaflops=500000.0))
    least, most = sealed.json(*CUDA)["seconds"]
    assert 0 < least < most
    sealed.environment["CUDA_VISIBLE_DEVICES"] = "GPU-2222"
    assert sealed.json(*CUDA)["gpu"] == SMALL.name
    run_file = tmp_path / "run.yaml"
    assert f"`appliance train start {run_file} --device cuda`" in sealed(*CUDA, "--out", str(run_file)).out
    # Planned for the CPU, the GPU that is left idle is named.
    assert f"{SMALL.name}: `--device cuda` computes on it" in sealed(*ASKED).out
    sealed.environment["CUDA_VISIBLE_DEVICES"] = ""
    assert sealed.json(*ASKED)["idle_gpu"] is None
    assert "CUDA would show 0 here" in sealed(*CUDA, expect=9).err
    assert sealed.json(*CUDA, "--memory", "24")["memory_available"] == 24 * GIB


def test_a_gpu_that_is_too_small_is_refused_before_anything_is_reserved(
    appliance: Appliance, run_file: Path, tmp_path: Path
) -> None:
    appliance.environment = library(tmp_path, [replace(H100, free=1 << 28)])
    start = ("train", "start", str(run_file), "--device", "cuda")
    assert "MiB of the GPU's memory, 256 MiB are there" in appliance(*start, expect=9).err
    appliance.environment = library(tmp_path, [H100])
    assert "8 GPUs are needed, one for each process" in appliance(*start, "--nproc", "8", expect=9).err
    assert appliance.json("ledger", "log", "--type", "run.reserved")["entries"] == []
    shown = appliance("--dry-run", *start).out
    assert "79.00 GiB are available on NVIDIA H100 80GB HBM3" in shown


def test_where_no_driver_answers_nothing_is_made_up(sealed: Appliance, tmp_path: Path) -> None:
    sealed.environment = {"PATH": str(tmp_path)}  # no nvidia-smi
    said = sealed.json(*CUDA)
    assert (said["gpu"], said["memory_available"]) == (None, None)
    assert said["host_memory_available"] > 0
    assert "how much there is is not known" in sealed(*CUDA).out
