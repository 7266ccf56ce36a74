"""The model card: front matter that the hub's own parser takes, and only numbers that the ledger states."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from appliance.report.card import CHECKING, LOADING
from appliance.store.trees import tree_digest
from tests.unit.report.story import HEX, MODEL, Story

# Digits that are no values: the names of a hash and of a program, and commands, which are the same in every card.
NAMES = ("SHA-256", "python3")


def parts(story: Story) -> tuple[dict[str, object], str]:
    front, body = story.render()["README.md"].decode()[4:].split("\n---\n", 1)
    return yaml.safe_load(front), body


def test_the_front_matter_names_licence_base_model_and_library(story: Story) -> None:
    fields, _ = parts(story)
    assert fields == {
        "license": "apache-2.0",
        "base_model": MODEL,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "differential-privacy", "dp-sgd", "watermark"],
    }


def test_the_hub_reads_the_card(story: Story) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(story.render()["README.md"].decode())
    assert card.data.library_name == "peft"
    assert card.data.base_model == MODEL
    assert card.data.license == "apache-2.0"


@pytest.mark.parametrize(
    "missing", ["", "audit.selftest", "watermark.embedded", "evaluation.settled", "model.imported"]
)
def test_every_number_in_the_card_is_a_figure_of_the_report(missing: str, story: Story) -> None:
    story = story.without(missing)
    twin = json.loads(story.render()["report.json"])
    known = {
        figure["value"] if isinstance(figure["value"], str) else json.dumps(figure["value"])
        for figure in twin["figures"]
    }
    _, body = parts(story)
    for name in (*NAMES, LOADING, CHECKING):
        body = body.replace(name, "")
    spans = re.findall(r"`([^`\n]+)`", body)
    assert [span for span in spans if re.search(r"\d", span) and span not in known] == []
    assert re.search(r"\d", re.sub(r"`[^`\n]+`", "", body)) is None


def test_the_commands_of_the_card_compute_the_digest_of_a_base_model(tiny_model_dir: Path) -> None:
    commands = CHECKING.removeprefix("```sh\n").removesuffix("```").replace("DIRECTORY OF THE BASE MODEL", "$MODEL")
    environment = {"PATH": "/usr/bin:/bin", "MODEL": str(tiny_model_dir)}
    done = subprocess.run(["sh", "-c", commands], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == tree_digest(tiny_model_dir)[0]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks by an old name
def test_the_example_of_the_card_generates(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    code = LOADING.removeprefix("```python\n").removesuffix("```").replace("DIRECTORY OF THE BASE MODEL", "MODEL")
    code = code.replace("MODEL", str(tiny_model_dir), 1).replace("len(text)", "4")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_card_says_the_guarantee_the_use_and_the_limits(story: Story) -> None:
    _, body = parts(story)
    for words in (
        "adding or removing",
        "`3.8794`",
        "PeftModel.from_pretrained",
        HEX[2],
        "No attack was run",
        "`48.396`",
    ):
        assert words in body
    assert "carries no mark" in parts(story.without("watermark.embedded"))[1]
    assert "WORSE" not in body


def test_no_path_of_a_machine_stands_in_the_card(story: Story) -> None:
    assert re.search(r"(^|[\s`\"])/\w", story.render()["README.md"].decode()) is None
