"""The demo on the real model and the real reviews, quick: every step runs, and what it prints can be checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MEDIA
from tests.e2e.conftest import Appliance


@pytest.mark.model
def test_the_quick_demo_runs_every_step_and_carries_its_budget_on(tmp_path: Path) -> None:
    if not (MEDIA / ".complete").exists():
        pytest.skip("no demo media in .media: `make demo` or `make test` downloads them")
    demo = Appliance(tmp_path / "home")
    try:
        done = demo.json("demo", "--quick", "--media", str(MEDIA))
        run = demo.home / "runs" / done["run"]
        assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 1_000_000
        assert 0 < float(done["epsilon"]) <= 8
        assert demo.json("ledger", "verify")["verdict"] == "intact"
        spent = demo.json("budget", "show")["budgets"][0]["spent_epsilon"]
        # The same run again would still fit; with a third one it would not: the budget carries on.
        words = ("train", "plan", "reviews-quick", "smollm2-135m", "--steps", "3", "--max-tokens", "96")
        again = demo.json(*words, "--epsilon", "8")
        assert again["epsilon_before"] == spent < again["epsilon_after"]
        demo(*words, "--epsilon", "12", expect=5)
    finally:
        demo("key", "lock", expect=None)
