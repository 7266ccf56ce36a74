"""`evaluate attention` as a user has it: a page, and nothing else anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROMPT = "The old clock of the town hall struck five, quetzal-4410."


def test_a_page_is_all_that_is_left(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    run, out = embedded["run_id"], tmp_path / "page.html"
    appliance("key", "lock")
    entries = appliance("ledger", "log").out
    words = ("evaluate", "attention", run, "--prompt", PROMPT, "--out", str(out), "--orders", "19")
    told = appliance.json(*words, "--variant", "marked")
    assert told["row_error"] < 1e-5
    assert set(told["faithfulness"]) == {"attention", "gradient", "random", "orders", "p"}
    assert b"quetzal" not in out.read_bytes()  # by its letters, each in a field of its own: the tokens are bytes
    assert b"marked model" in out.read_bytes()
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.stat().st_size < 500_000
    assert appliance("ledger", "log").out == entries
    assert not list((appliance.home / "runs").glob("attention_*"))
    appliance(*words, expect=2)  # what is there is not replaced
    appliance(*words[:3], "--prompt", "x" * 400, "--out", str(tmp_path / "long.html"), expect=6)
    assert not (tmp_path / "long.html").exists()
