"""Two ingests of the same file at the same time: neither may miss the other, or their budgets would be two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from appliance.files import sweep
from appliance.flows.data import ingest
from appliance.store import container
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


def test_an_ingest_that_begins_does_not_sweep_away_what_another_is_about_to_publish(tmp_path: Path) -> None:
    with ingest._staging(SimpleNamespace(objects=tmp_path)) as staging:  # type: ignore[arg-type]
        container.seal_bytes(b"whole, and not yet under its name", staging, bytes(32), "object")
        assert sweep(tmp_path) == 0
        assert staging.exists()
    assert not any(tmp_path.iterdir())
