"""A curriculum through the command line: kept fields, phases in the ledger, in the journal and in the statement."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

from appliance.privacy.accounting import Mechanism, epsilon_pld
from tests.e2e.conftest import TOKEN, Appliance
from tests.e2e.test_main_job import facts
from tests.unit.report import reading

SMALL = ("--steps", "5", "--batch", "60", "--max-tokens", "64", "--rank", "2")
CURRICULUM = """
curriculum:
  - {name: basics, ratio: 0.4, units: 250, expected_batch_size: 125, where: {field: topic, in: [heart]}}
  - {ratio: 0.6}
"""


def ingest(appliance: Appliance, tmp_path: Path, *options: str) -> None:
    lines = ["patient,topic,question,answer"]
    lines += [f"p{i // 3},{('heart', 'lung')[i % 2]},q {i}?,{TOKEN} number {i} is well" for i in range(1500)]
    (tmp_path / "visits.csv").write_text("\n".join(lines) + "\n")
    columns = ("--prompt", "question", "--completion", "answer", "--subject", "patient", "--max-records", "3")
    words = ("data", "ingest", str(tmp_path / "visits.csv"), "--name", "visits", "--units", "500", *columns, *options)
    appliance(*words)


def planned(appliance: Appliance, path: Path, curriculum: str = CURRICULUM) -> Path:
    appliance("train", "plan", "visits", "tiny", "--epsilon", "4", "--out", str(path), *SMALL)
    path.write_text(path.read_text() + curriculum)
    return path


def test_phases_are_sampled_charged_and_stated(appliance: Appliance, tmp_path: Path) -> None:
    ingest(appliance, tmp_path, "--keep", "topic")
    done = appliance.json("train", "start", str(planned(appliance, tmp_path / "run.yaml")))
    assert done["state"] == "finished"
    (reserved,), (settled,) = facts(appliance, "run.reserved"), facts(appliance, "run.settled")
    assert reserved["plan"]["phases"] == [
        {"name": "basics", "steps": 2, "declared_units": 250, "expected_batch_size": 125, "sample_rate": "1/2",
         "field": "topic", "values": ["heart"]},
        {"name": "phase-2", "steps": 3, "declared_units": 500, "expected_batch_size": 60, "sample_rate": "3/25"},
    ]  # fmt: skip
    rates = [(phase["sample_rate"], phase["attempts"]) for phase in settled["phases"]]
    assert rates == [("1/2", 2), ("3/25", 3)]
    delta = float(settled["delta"]) - float(settled["sampler_delta"])
    sigma = float(settled["noise_multiplier"])
    mechanisms = [Mechanism(sigma, Fraction(rate), attempts) for rate, attempts in rates]
    assert float(settled["epsilon_pld"]) == epsilon_pld(mechanisms, delta)
    journal = (appliance.home / "runs" / done["run"] / "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line)["entry"] for line in journal]
    assert [e["sample_rate"] for e in entries if e["type"] == "attempt"] == ["1/2"] * 2 + ["3/25"] * 3

    appliance("report", "build", done["run"], "--out", str(tmp_path / "report"))
    statement = json.loads((tmp_path / "report" / "privacy_statement.json").read_text())
    (phases,) = [value["value"] for value in statement["values"] if value["name"] == "phases"]
    assert phases == reserved["plan"]["phases"]
    page = (tmp_path / "report" / "report.html").read_bytes()
    assert "with the sample rate of each phase" in reading.paragraphs(page, "guarantee")[0]
    shown = reading.rows(page, "guarantee")
    assert shown[:2] == [["basics", "2", "1/2"], ["phase-2", "3", "3/25"]]
    assert [row[0] for row in shown].count("Phase, composed with the others") == 2
    appliance("ledger", "verify")


def test_a_field_that_was_not_kept_is_refused_before_anything_is_reserved(appliance: Appliance, tmp_path: Path) -> None:
    ingest(appliance, tmp_path)
    refused = appliance("train", "start", str(planned(appliance, tmp_path / "run.yaml")), expect=3)
    assert "keeps no field topic" in refused.err
    assert "--keep COLUMN" in refused.err
    assert facts(appliance, "run.reserved") == []
