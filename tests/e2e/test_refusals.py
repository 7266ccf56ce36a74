"""What a user gets wrong: the right exit status, a message with its place, a hint, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from appliance.isolation import gpu
from tests.e2e.conftest import COLUMNS, TOKEN, Appliance


def test_rejected_rows_are_named_by_file_line_and_offset(appliance: Appliance, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    good = "".join(f'{{"prompt":"q{i}","completion":"{TOKEN} {i}"}}\n' for i in range(600))
    path.write_text(good + f'{{"prompt": "{TOKEN}\n{{"prompt":"x"}}\n')
    done = appliance("data", "ingest", str(path), "--name", "some", "--units", "600")
    assert "some.jsonl:601 (byte " in done.err
    assert "some.jsonl:602 (byte " in done.err


def test_a_file_without_one_good_row_is_refused(appliance: Appliance, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{{{TOKEN}\n" * 3)
    refused = appliance("data", "ingest", str(path), "--name", "bad", "--units", "600", expect=6)
    assert "bad.jsonl" in refused.err
    assert appliance.json("ledger", "log", "--type", "data.refused")["entries"]
    assert [d["name"] for d in appliance.json("data", "list")["datasets"]] == ["notes"]


def test_a_declaration_far_off_is_refused_without_the_count(appliance: Appliance, tmp_path: Path) -> None:
    refused = appliance(
        "data", "ingest", str(tmp_path / "notes.csv"), "--name", "x", "--units", "5000", *COLUMNS, expect=6
    )
    assert "600" not in refused.err


def test_a_missing_model_and_a_changed_one(appliance: Appliance, tmp_path: Path, run_file: Path) -> None:
    appliance("model", "import", str(tmp_path / "nowhere"), "--name", "x", expect=11)
    appliance("train", "plan", "notes", "nowhere", "--epsilon", "1", expect=11)
    text = run_file.read_text()
    digest = appliance.json("model", "list")["models"][0]["sha256"]
    run_file.write_text(text.replace(digest, "0" * 64))
    appliance("train", "start", str(run_file), expect=8)
    run_file.write_text(text)
    weights = next((appliance.home / "models").glob("*/model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "model.safetensors" in appliance("model", "verify", expect=8).err
    appliance("train", "start", str(run_file), expect=8)
    assert appliance.json("ledger", "log", "--type", "run.reserved")["entries"] == []


def test_pickles_are_refused(appliance: Appliance, tiny_model_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_model_dir, tmp_path / "pickled"))
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    appliance("model", "import", str(source), "--name", "pickled", expect=6)
    assert appliance.json("ledger", "log", "--type", "model.refused")["entries"]


def test_a_wrong_passphrase(sealed: Appliance) -> None:
    sealed.passphrase.write_text("not the passphrase\n")
    sealed("key", "unlock", expect=13)
    assert sealed.json("key", "status")["state"] == "sealed"


def test_a_sealed_store_trains_nothing(sealed: Appliance, run_file: Path) -> None:
    refused = sealed("train", "start", str(run_file), expect=13)
    assert "appliance key unlock" in refused.err
    assert sealed.json("ledger", "log", "--type", "run.reserved")["entries"] == []


@pytest.mark.skipif(bool(gpu.nodes()), reason="not run: this machine has a GPU")
def test_a_run_on_a_gpu_that_is_not_there_reserves_nothing(appliance: Appliance, run_file: Path) -> None:
    refused = appliance("train", "start", str(run_file), "--device", "cuda", expect=9)
    assert "there is no GPU" in refused.err
    assert "--device cpu" in refused.err
    assert appliance.json("train", "status")["runs"] == []


def test_an_unknown_policy_key_names_the_one_that_was_meant(sealed: Appliance, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "policies" / "default.yaml"
    wrong = tmp_path / "policy.yaml"
    wrong.write_text(shipped.read_text().replace("max_epsilon:", "max_epsilom:", 1))
    refused = sealed("policy", "activate", str(wrong), expect=3)
    assert "max_epsilon" in refused.err
    assert "policy.yaml:" in refused.err


def test_a_run_outside_the_policy(appliance: Appliance, tmp_path: Path, run_file: Path) -> None:
    shipped = Path(__file__).parents[2] / "policies" / "default.yaml"
    strict = tmp_path / "strict.yaml"
    strict.write_text(shipped.read_text().replace("bases: any", f"bases: [{'0' * 64}]"))
    appliance("policy", "activate", str(strict))
    refused = appliance("train", "start", str(run_file), expect=4)
    assert "bases" in refused.err


@pytest.mark.parametrize(
    "words", [("train", "start", "nowhere.yaml"), ("data", "show", "nothing"), ("policy", "check", "no.yaml")]
)
def test_missing_things(sealed: Appliance, words: tuple[str, ...]) -> None:
    sealed(*words, expect=11)


def test_evaluation_data_is_not_trained_on(appliance: Appliance, tmp_path: Path) -> None:
    held = tmp_path / "held.csv"
    held.write_text((tmp_path / "notes.csv").read_text().replace("number", "held out number"))
    appliance("data", "ingest", str(held), "--name", "held", "--units", "600", "--purpose", "evaluation", *COLUMNS)
    appliance("train", "plan", "held", "tiny", "--epsilon", "1", expect=4)


def test_a_plan_is_not_overwritten(sealed: Appliance, tmp_path: Path, run_file: Path) -> None:
    written = run_file.read_bytes()
    words = ("train", "plan", "notes", "tiny", "--epsilon", "1", "--out")
    refused = sealed(*words, str(run_file), expect=2)
    assert "--yes" in refused.err
    assert run_file.read_bytes() == written
    sealed(*words, str(tmp_path / "other.yaml"))


@pytest.mark.parametrize("words", [("key", "lock"), ("ledger", "sign"), ("watermark", "keygen")])
def test_a_verb_without_a_dry_run_refuses_one(sealed: Appliance, words: tuple[str, ...]) -> None:
    assert "no dry run" in sealed("--dry-run", *words, expect=2).err


WRONG = [
    ("targets: all-linear", "targets: [nothing_proj]", "no linear layer nothing_proj"),
    ("targets: all-linear", "targets: [lm_head]", "no linear layer lm_head"),
    ("r: 2", "r: 33", "rank 33 is larger than a dimension of"),
    ("r: 2", "use_dora: true", "unknown key 'use_dora'"),
    ("expected_batch_size: 60", "expected_batch_size: 601", "must lie between 1 and the 600 declared units"),
]


def test_a_run_file_that_cannot_be_trained_is_refused_before_data_is_opened(
    appliance: Appliance, run_file: Path
) -> None:
    """One after the other in one home: each is refused for its own reason, and none leaves a reservation."""
    text = run_file.read_text()
    for old, new, message in WRONG:
        assert old in text
        run_file.write_text(text.replace(old, new))
        refused = appliance("train", "start", str(run_file), expect=3)
        assert message in refused.err
    assert appliance.json("ledger", "log", "--type", "run.reserved")["entries"] == []


def test_a_base_without_a_chat_template(appliance: Appliance, tiny_model_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_model_dir, tmp_path / "plain"))
    for path in (source / "chat_template.jinja", source / "tokenizer_config.json"):
        if path.name.endswith(".jinja"):
            path.unlink(missing_ok=True)
        else:
            settings = json.loads(path.read_text())
            settings.pop("chat_template", None)
            path.write_text(json.dumps(settings))
    appliance("model", "import", str(source), "--name", "plain")
    path = tmp_path / "plain.yaml"
    appliance("train", "plan", "notes", "plain", "--epsilon", "2", "--out", str(path))
    assert "  from: none" in path.read_text()
    path.write_text(path.read_text().replace("  from: none", "  from: base"))
    refused = appliance("train", "start", str(path), expect=3)
    assert "has no chat template" in refused.err
    assert "template.from to none" in refused.err
