"""The demo on the real model and the real reviews, quick: every step runs, and what it prints can be checked."""

from __future__ import annotations

import csv
import html
import io
from pathlib import Path

import pytest

from appliance.cli.demonstration import FULL, PROMPT, QUICK, Size
from appliance.flows import demo as demo_media
from appliance.flows import policy
from appliance.ingest.fingerprints import overlap
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.spec import IngestSpec
from tests.conftest import MEDIA
from tests.e2e.conftest import Appliance
from tests.e2e.test_main_job import facts


@pytest.mark.parametrize("size", [FULL, QUICK], ids=lambda size: str(size.name))
def test_the_policy_allows_what_either_demo_brings_in(size: Size) -> None:
    """The full demo takes too long for a test; what its policy says of its data is known without running it."""
    rules = policy.load("demo").rules(size.class_name)
    assert rules.min_units <= min(size.training, size.held_out)
    assert rules.max_delta >= 1 / (100 * size.training)
    assert rules.max_delta >= min(1e-5, 1 / (100 * size.held_out))
    assert rules.max_epsilon >= 8


@pytest.mark.model
@pytest.mark.parametrize("size", [FULL, QUICK], ids=lambda size: str(size.name))
def test_no_held_out_review_is_trained_on(size: Size) -> None:
    """Patients' texts are in both files of the full demo's source; the appliance would refuse to evaluate on them."""
    if not (MEDIA / ".complete").exists():
        pytest.skip("no demo media in .media: `make demo` or `make test` downloads them")
    media = demo_media.unpack(MEDIA, size.training, size.held_out)
    trained, held = (_reviews(path) for path in (media.training, media.held_out))
    assert len(trained) == size.training
    assert 0.99 * size.held_out <= len(held) <= size.held_out
    assert not set(trained) & set(held)
    assert not overlap(_fingerprints(media.training), _fingerprints(media.held_out))


def _fingerprints(path: Path) -> bytes:
    """What `data ingest`, as the demo calls it, knows the reviews by."""
    spec = IngestSpec(format="tsv", prompt=PROMPT, completion="{review}", unescape_html=True)
    ingestion = Ingestion([path], spec, bytes(32))
    assert list(ingestion)
    return ingestion.fingerprints


def _reviews(path: Path) -> list[str]:
    rows = csv.DictReader(io.StringIO(path.read_text("utf-8")), delimiter="\t")
    return [" ".join(html.unescape(row["review"]).split()).casefold() for row in rows]


@pytest.mark.timeout(1800)  # a busy machine
@pytest.mark.model
def test_the_quick_demo_runs_every_step_and_carries_its_budget_on(tmp_path: Path) -> None:
    if not (MEDIA / ".complete").exists():
        pytest.skip("no demo media in .media: `make demo` or `make test` downloads them")
    demo = Appliance(tmp_path / "not made yet" / "home")
    try:
        done = demo.json("demo", "--quick", "--media", str(MEDIA))
        run = demo.home / "runs" / done["run"]
        assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 1_000_000
        assert 0 < float(done["epsilon"]) <= 8
        assert demo.json("ledger", "verify")["verdict"] == "intact"
        assert float(facts(demo, "watermark.embedded")[0]["score"]) >= 13.4
        public = facts(demo, "evaluation.settled")[0]["public"]
        assert abs(float(public["change_percent"])) <= 0.1  # what the mark does to the loss on public text
        assert float(public["low"]) <= float(public["change_percent"]) <= float(public["high"])
        pinned = demo.json("ledger", "head")["fingerprint"]
        assert demo.json("export", "verify", done["bundle"], "--trusted-key", pinned)["verdict"] == "intact"
        assert demo.json("export", "verify", done["bundle"], expect=14)["verdict"] == "incomplete"
        budgets = demo.json("budget", "show", "reviews-quick")["budgets"]
        spent = budgets[0]["spent_epsilon"]
        # The same run again would still fit; with a third one it would not: the budget carries on.
        words = ("train", "plan", "reviews-quick", "smollm2-135m", "--steps", "3", "--max-tokens", "96")
        again = demo.json(*words, "--epsilon", "8")
        assert again["epsilon_before"] == spent < again["epsilon_after"]
        demo(*words, "--epsilon", "12", expect=5)
    finally:
        demo("key", "lock", expect=None)
