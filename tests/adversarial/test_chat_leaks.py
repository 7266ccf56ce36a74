"""What is said in a chat is in no file that any process wrote, deleted ones too: only in its pipes and on the output.

The chat of a real home runs under strace; what the model answers holds the secret's letters only if it repeats them, so
the secret is the prompt. A worker that was made to leave it in a file must be found by the same search.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.adversarial.test_leaks import needs_strace, token_ids
from tests.adversarial.tracing import ROOT, SECRET, leaks, traced
from tests.e2e.conftest import finished_home, marked_home, template, unkeyed_home
from tests.e2e.test_selftest import altered, replace

__all__ = ["finished_home", "marked_home", "template", "token_ids", "unkeyed_home"]


def chat(home: Path, run: str, traces: Path, software: Path) -> None:
    words = ("-m", "appliance", "--home", str(home), "model", "chat", run, "--tokens", "4")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(home.parent / "tmp")}
    traced(traces, sys.executable, *words, environment=environment, text=f"{SECRET}\n", cwd=software)


@pytest.fixture
def home(marked_home: Path, tmp_path: Path) -> Path:
    shutil.copytree(marked_home / "home", tmp_path / "scanned" / "home")
    (tmp_path / "scanned" / "home").chmod(0o700)
    (tmp_path / "scanned" / "tmp").mkdir()
    return tmp_path / "scanned" / "home"


def places(home: Path, run: str, tmp_path: Path, ids: list[int], software: Path = ROOT) -> list[str]:
    chat(home, run, tmp_path / "traces", software)
    found = leaks([tmp_path / "scanned"], tmp_path / "traces", ids)
    return sorted(place for place in found if "<pipe:" not in place)


@needs_strace
def test_a_prompt_is_written_to_pipes_alone(home: Path, tmp_path: Path, token_ids: list[int]) -> None:
    run = next((home / "runs").glob("run_*")).name
    assert places(home, run, tmp_path, token_ids) == []
    said = leaks([], tmp_path / "traces", token_ids)
    assert any("<pipe:" in place for place in said)  # the search does see what the pipes carried


@needs_strace
def test_a_worker_that_leaves_a_prompt_is_found(home: Path, tmp_path: Path, token_ids: list[int]) -> None:
    software = tmp_path / "software"
    altered(software, "worker/chat.py", "exchange.say([name, piece])", "exchange.say([name, piece]); left.unlink()")
    code = software / "appliance" / "worker" / "chat.py"
    old = "            for name, piece in talk.answer(str(prompt)):"
    replace(code, old, f"            left = run_dir.path / 'tmp' / 'x'\n{old}")
    replace(code, "exchange.say([name, piece]);", "left.write_text(str(prompt)); exchange.say([name, piece]);")
    run = next((home / "runs").glob("run_*")).name
    assert any("/tmp/x" in place for place in places(home, run, tmp_path, token_ids, software))
