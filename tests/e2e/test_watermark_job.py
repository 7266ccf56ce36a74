"""The watermark as a user has it: keygen, train, embed, detect; and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.e2e.conftest import Appliance, unsealed


def released(appliance: Appliance, run: str) -> Path:
    return appliance.home / "runs" / run / "released"


def merge(model_dir: Path, adapter: Path, target: Path) -> Path:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter)
    model.merge_and_unload().save_pretrained(target)
    return target


def test_embed_then_detect_on_adapter_and_merged_model(marked: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    directory = appliance.home / "runs" / run
    assert float(embedded["score"]) >= 13.4
    assert embedded["p_bound"] == "2^-128"
    assert {path.name for path in released(appliance, run).iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    certificate = (directory / "watermark_certificate.json").read_bytes()
    assert hashlib.sha256(certificate).hexdigest() == embedded["certificate_sha256"]
    assert json.loads(certificate)["escrow_sha256"] == embedded["escrow_sha256"]

    found = appliance.json("watermark", "detect", str(released(appliance, run)), "--run", run)
    assert (found["detected"], found["suspect_kind"], found["score"]) == (True, "adapter", embedded["score"])
    merged = merge(tiny_model_dir, released(appliance, run), tmp_path / "merged")
    found = appliance.json("watermark", "detect", str(merged), "--run", run, "--key", embedded["key_id"])
    assert (found["detected"], found["suspect_kind"]) == (True, "model")
    stated = Path(found["certificate"]).read_bytes()
    assert hashlib.sha256(stated).hexdigest() == found["certificate_sha256"]

    plain = merge(tiny_model_dir, directory / "adapter", tmp_path / "plain")
    found = appliance.json("watermark", "detect", str(plain), "--run", run)
    assert found["detected"] is False
    assert abs(float(found["score"])) < 7
    appliance("ledger", "verify")
    leaves = appliance("ledger", "log").out
    assert leaves.index("run.reserved") < leaves.index("watermark.committed") < leaves.index("run.started")
    assert leaves.index("run.settled") < leaves.index("watermark.embedded") < leaves.index("watermark.detected")


def test_the_released_adapter_is_one_that_vllm_takes(marked_home: Path) -> None:
    """By vLLM's own check of an adapter (`vllm/lora/peft_helper.py`, read, not run: it needs a GPU machine)."""
    (directory,) = (marked_home / "home" / "runs").glob("*/released")
    config = json.loads((directory / "adapter_config.json").read_bytes())
    assert config["peft_type"] == "LORA"
    assert type(config["r"]) is int
    assert 1 <= config["r"] <= 512  # the largest --max-lora-rank there is
    assert config["lora_alpha"] > 0
    assert config["bias"] == "none"
    assert config["modules_to_save"] is None
    assert not any(config[name] for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias"))
    targets = config["target_modules"]
    assert isinstance(targets, list)
    tensors = load_file(directory / "adapter_model.safetensors")
    names = [re.fullmatch(r"base_model\.model\.(?:\w+\.)*(\w+)\.lora_[AB]\.weight", name) for name in tensors]
    assert {name and name[1] for name in names} == set(targets)


def test_embedding_again_changes_nothing_and_makes_lost_files_again(marked: Any) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    again = appliance.json("watermark", "embed", run)
    assert again["released_sha256"] == embedded["released_sha256"]
    shutil.rmtree(released(appliance, run))
    (appliance.home / "runs" / run / "escrow.sealed").unlink()
    appliance("watermark", "keygen")  # the run keeps the key it was committed to
    again = appliance.json("watermark", "embed", run)
    assert (again["released_sha256"], again["key_id"]) == (embedded["released_sha256"], embedded["key_id"])
    assert (appliance.home / "runs" / run / "escrow.sealed").exists()
    assert appliance("ledger", "log").out.count("watermark.embedded") == 1


def test_a_run_reserved_before_any_key_is_refused(
    unkeyed_home: Path, planned: Callable[..., Path], tmp_path: Path
) -> None:
    policy = tmp_path / "optional.yaml"
    text = (Path(__file__).parents[2] / "policies" / "default.yaml").read_text()
    policy.write_text(text.replace("watermark: required", "watermark: optional"))
    run_file = str(planned("run"))
    with unsealed(unkeyed_home, tmp_path) as appliance:
        refused = appliance("train", "start", run_file, expect=4)
        assert "appliance watermark keygen" in refused.err
        appliance("policy", "activate", str(policy))
        run = appliance.json("train", "start", run_file)["run"]
        appliance("watermark", "keygen")
        refused = appliance("watermark", "embed", run, expect=4)
        assert "committed to no watermark key before" in refused.err
        assert "appliance watermark keygen" in refused.err
        assert "watermark.refused" in appliance("ledger", "log").out
        appliance("watermark", "embed", "run_000000000000", expect=11)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_what_was_altered_is_refused(marked: Any) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    directory = appliance.home / "runs" / run
    suspect = str(released(appliance, run))
    appliance("watermark", "detect", suspect, "--run", run, "--key", "wmk_000000000000", expect=2)
    for name in ("escrow.sealed", "adapter/adapter_model.safetensors", "job.json"):
        flip(directory / name)
        appliance("watermark", "detect", suspect, "--run", run, expect=8)
        flip(directory / name)


def test_an_altered_ledger_gives_no_key_and_no_reference(marked: Any) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    with sqlite3.connect(appliance.home / "ledger.db") as database:
        (leaf,) = database.execute(
            "SELECT leaf FROM entry WHERE type = 'watermark.embedded' AND subject = ?", (run,)
        ).fetchone()
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        forged = bytes(leaf).replace(embedded["escrow_sha256"].encode(), b"0" * 64)
        assert forged != bytes(leaf)
        database.execute("UPDATE entry SET leaf = ? WHERE type = 'watermark.embedded'", (forged,))
    appliance("watermark", "detect", str(released(appliance, run)), "--run", run, expect=8)


def test_a_sealed_store_marks_nothing(marked: Any) -> None:
    appliance, embedded = marked
    appliance("key", "lock")
    suspect = str(released(appliance, embedded["run_id"]))
    appliance("watermark", "detect", suspect, "--run", embedded["run_id"], expect=13)
    appliance("watermark", "keygen", expect=13)
