"""Scores that name entries of the ledger: there, proven, and what the file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import ArtefactMissing, IntegrityError
from appliance.flows import decision
from appliance.flows.home import Home
from tests.e2e.conftest import Appliance

EXAMPLE = (Path(__file__).parents[2] / "docs" / "examples" / "scores.yaml").read_text()


def test_a_score_rests_on_an_entry_that_is_there_and_is_what_is_said(sealed: Appliance, tmp_path: Path) -> None:
    entries = {entry["leaf"]["type"]: entry["index"] for entry in sealed.json("ledger", "log")["entries"]}
    index, path, home = entries["model.imported"], tmp_path / "scores.yaml", Home.open(sealed.home)

    def decide(evidence: str, where: Home | None = home) -> decision.Decision:
        path.write_text(EXAMPLE.replace("score: 5}", f"score: 5, {evidence}, why: the licence is free}}", 1))
        return decision.score(path, where, 0)

    found = decide(f"entry: {index}, type: model.imported")
    assert (found.evidenced, found.asserted) == (1, 9)
    assert "quality" not in next(one for one in found.ranked if one.name.startswith("a service")).asserted
    with pytest.raises(IntegrityError, match=f"entry {index} is model.imported, and not serving.measured"):
        decide(f"entry: {index}, type: serving.measured")
    with pytest.raises(ArtefactMissing):
        decide("entry: 99999, type: model.imported")
    with pytest.raises(ArtefactMissing, match="there is none"):
        decide(f"entry: {index}, type: model.imported", None)
