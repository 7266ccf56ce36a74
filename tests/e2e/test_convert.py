"""`model merge` and `model quantize`: the marked adapter alone, its mark looked for afterwards, bound to the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from appliance.store.trees import tree_digest
from tests.e2e.conftest import Appliance
from tests.e2e.test_main_job import facts


def entries(appliance: Appliance) -> str:
    return appliance.here("ledger", "log").out


def test_merged_and_int8_carry_the_mark_and_stand_in_the_ledger(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    merged = appliance.json("model", "merge", run, "--out", str(tmp_path / "merged"), "--predictions", "256")
    packed = appliance.json(
        "model", "quantize", run, "--to", "int8", "--out", str(tmp_path / "int8"), "--predictions", "2048"
    )
    for made in (merged, packed):
        assert tree_digest(Path(made["out"]))[0] == made["artefact_sha256"]
        assert (made["run_id"], made["released_sha256"]) == (run, embedded["released_sha256"])
        assert float(made["watermark_score"]) >= 13.4
        assert made["base_four_bit"] is False
    assert (merged["comparison"]["predictions"], packed["comparison"]["predictions"]) == (256, 2048)
    assert ("max_loss" in merged, packed["max_loss"]) == (False, "1.0")  # the run file's gate, which is of INT8 alone
    assert float(merged["comparison"]["agreement"]) > 95
    assert merged["watermark_score"] == embedded["score"]
    assert "lm_head.weight" in load_file(tmp_path / "int8" / "model.safetensors")
    assert entries(appliance).count("model.converted") == 2
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()
    assert not list((appliance.home / "runs").glob("convert_*"))
    appliance("ledger", "verify")
    # Somebody else's copy of the same weights is still recognised, and one of the unmarked adapter is not.
    found = appliance.json("watermark", "detect", str(tmp_path / "int8"), "--run", run)
    assert (found["detected"], found["suspect_kind"]) == (True, "model")


def test_what_is_refused_leaves_nothing_but_an_entry(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    run, out = embedded["run_id"], tmp_path / "out"
    quantize = ("model", "quantize", run, "--out", str(out))
    appliance(*quantize, "--to", "int3", expect=2)
    appliance(*quantize, "--to", "int8", "--predictions", "0", "--max-loss", "1", expect=2)
    refused = appliance(*quantize, "--to", "nf4", "--predictions", "256", expect=6)
    assert "cannot be run" in refused.err  # bitsandbytes' product on the CPU wants larger layers
    # Half a percentage point and more stays open with so few predictions: the gates do not take that for no loss.
    refused = appliance(*quantize, "--to", "int8", "--predictions", "256", "--max-loss", "0.5", expect=10)
    assert "where 0.5 are allowed" in refused.err
    assert not out.exists()
    assert entries(appliance).count("conversion.refused") == 1
    released = appliance.home / "runs" / run / "released" / "adapter_model.safetensors"
    data = bytearray(released.read_bytes())
    released.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    appliance("model", "merge", run, "--out", str(out), expect=8)
    released.write_bytes(bytes(data))
    appliance("key", "lock")
    appliance("model", "merge", run, "--out", str(out), expect=13)
    assert not out.exists()


def test_the_gate_of_the_run_file_is_neither_loosened_nor_left_out(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    run, out = embedded["run_id"], tmp_path / "out"
    quantize = ("model", "quantize", run, "--to", "int8", "--out", str(out))
    assert facts(appliance, "run.reserved")[0]["max_loss"] == {"int8": "1.0"}
    # The run file as it is now is not asked: what was reserved holds.
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace("max_loss: 1.0", "max_loss: 99.0"))
    refused = appliance(*quantize, "--predictions", "256", "--max-loss", "99", expect=10)
    assert "where 1 are allowed" in refused.err
    assert "needs predictions" in appliance(*quantize, "--predictions", "0", expect=2).err
    assert not out.exists()
    (entry,) = facts(appliance, "conversion.refused")
    assert entry["code"] == 10


def test_without_a_mark_nothing_is_merged(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    # The mark of another run's key is no mark: what was released is replaced by the unmarked adapter, and noticed.
    run_dir = appliance.home / "runs" / embedded["run_id"]
    shutil.rmtree(run_dir / "released")
    shutil.copytree(run_dir / "adapter", run_dir / "released")
    appliance("model", "merge", embedded["run_id"], "--out", str(tmp_path / "out"), "--predictions", "0", expect=8)
    assert not (tmp_path / "out").exists()
