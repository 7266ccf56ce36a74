"""Two ingests of the same file at the same time: neither may miss the other, or their budgets would be two."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Appliance


def test_two_ingests_at_once_know_of_each_other(appliance: Appliance, tmp_path: Path) -> None:
    columns = ("--prompt", "question", "--completion", "answer", "--units", "600")
    file = str(tmp_path / "notes.csv")
    both = [appliance.popen("data", "ingest", file, "--name", name, *columns) for name in ("one", "two")]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    facts = {
        entry["leaf"]["facts"]["name"]: entry["leaf"]["facts"]
        for entry in appliance.json("ledger", "log", "--type", "data.sealed")["entries"]
    }
    one, two, notes = facts["one"], facts["two"], facts["notes"]
    assert (two["dataset_id"] in one["overlaps"]) != (one["dataset_id"] in two["overlaps"])
    assert notes["dataset_id"] in one["overlaps"]
    assert notes["dataset_id"] in two["overlaps"]
    appliance("ledger", "verify")
