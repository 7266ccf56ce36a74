"""`model chat` as a user has it: the base and both adapters answer, and nothing of it stays anywhere."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.jobs.chat import ChatJob, ChatResult
from tests.e2e.conftest import Appliance

ASKED = "how is patient 7?"


def ask(appliance: Appliance, run: str, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-I",
        "-m",
        "appliance",
        "--home",
        str(appliance.home),
        *words,
        "model",
        "chat",
        run,
        "--tokens",
        "8",
    ]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21 on transformers 5
def test_answers_are_those_of_stock_tools_and_the_ledger_says_nothing(marked: Any, tiny_model_dir: Path) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    appliance("key", "lock")  # no key of a dataset is needed
    entries = appliance("ledger", "log").out
    told = appliance.json("model", "chat", run, "--prompt", ASKED, "--tokens", "12")
    assert list(told["answers"]) == ["base", "adapter", "marked"]
    assert appliance("ledger", "log").out == entries
    assert not list((appliance.home / "runs").glob("chat_*"))

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    engine = json.loads((appliance.home / "runs" / run / "job.json").read_bytes())["engine"]
    for name, place in (("base", None), ("adapter", "adapter"), ("marked", "released")):
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=getattr(torch, engine["dtype"]))
        if place:
            model = PeftModel.from_pretrained(model, appliance.home / "runs" / run / place)
        out = model.eval().generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        stock = tokenizer.decode(out, skip_special_tokens=True).rstrip("\ufffd")
        assert told["answers"][name].rstrip("\ufffd").startswith(stock[:3])


def test_line_by_line_and_what_is_refused(marked: Any) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    done = ask(appliance, run, f"{ASKED}\n\n/new\nand windy?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("marked:") == 2
    assert ASKED not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert ask(appliance, run, "", "--json").returncode == 2
    assert ask(appliance, "run_000000000000", "").returncode == 11
    weights = appliance.home / "runs" / run / "released" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    refused = ask(appliance, run, f"{ASKED}\n")
    assert refused.returncode == 8, refused.stderr
    assert ASKED not in refused.stderr


def test_columns_on_a_terminal_show_no_control_characters(marked: Any) -> None:
    appliance, embedded = marked
    controller, terminal = pty.openpty()
    words = ("model", "chat", embedded["run_id"], "--prompt", ASKED, "--tokens", "40", "--temperature", "5")
    command = [sys.executable, "-I", "-m", "appliance", "--home", str(appliance.home), *words]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    while piece := read(controller):
        seen += piece
    assert process.wait(timeout=300) == 0
    assert all(name in seen for name in (b"base", b"adapter", b"marked"))
    assert not set(seen) & ({0x00, 0x07, 0x08, 0x7F} | set(range(0x0E, 0x1B)))  # the random model writes any byte


def read(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError:  # how a terminal says that nobody writes any more
        return b""


def test_neither_job_nor_result_has_room_for_what_is_said() -> None:
    free = {"kind", "model_dir", "adapter_dir", "released_dir"}
    assert not set(ChatResult.model_fields) - {"schema_", "kind", "run_id", "isolation", "libraries"}
    texts = {name for name, field in ChatJob.model_fields.items() if field.annotation in (str, str | None)} - free
    assert texts <= {"run_id", "model_sha256", "adapter_sha256", "released_sha256"}
