"""Sealing a directory, the refusals of `export bundle`, and the proofs that the ledger gives for it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import (
    ArtefactMissing,
    GateFailed,
    IntegrityError,
    PolicyDenied,
    UsageError,
    VerificationIncomplete,
)
from appliance.events.catalog import event
from appliance.events.logged import LoggedEvent
from appliance.export import verify
from appliance.export.manifest import check_paths
from appliance.flows.release import bundle as flow
from appliance.flows.release.told import run_events
from appliance.ledger import proof
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import Checkpoint
from tests.events import facts_of
from tests.unit.export import sealed


def test_a_bundle_is_readable_by_all_and_nothing_is_left_beside_it(bundled: Path) -> None:
    for path in (bundled / "bundle").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
    assert not list(bundled.glob(".*"))
    manifest = json.loads((bundled / "bundle" / "manifest.json").read_bytes())
    listed = {file["path"] for file in manifest["files"]}
    there = {p.relative_to(bundled / "bundle").as_posix() for p in (bundled / "bundle").rglob("*") if p.is_file()}
    assert {name for name in there if not name.startswith("ledger/")} - {"manifest.json"} == listed
    assert (bundled / "bundle" / "verify.py").read_bytes() == Path(verify.__file__).read_bytes()


def test_a_refused_directory_leaves_no_entry_and_no_file(tmp_path: Path) -> None:
    released = sealed.make_released(tmp_path / "released")
    with sealed.make_ledger(tmp_path / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        before = sum(1 for _ in ledger.entries())
        (tmp_path / "taken").mkdir()
        copies = {"adapter": (tmp_path / "released", "0" * 64)}
        with pytest.raises(UsageError):
            sealed.export(ledger, tmp_path, "run_1", "taken")
        with pytest.raises(IntegrityError):
            sealed.export(ledger, tmp_path, "run_1", "other", copies=copies)
        with pytest.raises(UsageError):
            sealed.export(ledger, tmp_path, "run_1", "odd", documents={"../up": b""})
        with pytest.raises(ArtefactMissing):
            run_events(ledger, "run_2")
        assert sum(1 for _ in ledger.entries()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "released", "taken"]


ODD = ("../x", "/x", "a//b", "a/../b", ".hidden", "con", "NUL.txt", "a/lpt1", "end.", "é", "a\\b", "a:b", "a b", "")
OURS = ("ledger/x", "Ledger/x", "manifest.json", "MANIFEST.json")


@pytest.mark.parametrize("path", [*ODD, *OURS, "x" * 300])
def test_paths_that_cannot_stand_in_a_bundle(path: str) -> None:
    with pytest.raises(UsageError):
        check_paths([path])


def test_paths_that_differ_in_case_only() -> None:
    check_paths(["README.md", "adapter/adapter_model.safetensors"])
    with pytest.raises(UsageError):
        check_paths(["a/b", "A/b"])


def test_a_later_bundle_continues_the_head_of_an_earlier_one(tmp_path: Path) -> None:
    released = sealed.make_released(tmp_path / "released")
    with sealed.make_ledger(tmp_path / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        first = sealed.export(ledger, tmp_path, "run_1", "first")
        second = sealed.export(ledger, tmp_path, "run_1", "second")
        assert first.head.size in second.manifest.earlier
        text = (tmp_path / "second" / "ledger" / "consistency" / f"{first.head.size}.txt").read_text()
        head = Checkpoint(second.manifest.origin, second.head.size, second.head.root)
        assert proof.verify_consistency(text, head).root == first.head.root
        covering = ledger.head(covering=first.index)
        assert covering == first.head
        assert ledger.head(covering=10**6) is None
        for size in (0, second.head.size + 1):
            with pytest.raises(UsageError):
                ledger.prove_consistency(size, second.head)


def test_a_bundle_tells_nothing_of_how_the_data_came_in(tmp_path: Path) -> None:
    released = sealed.make_released(tmp_path / "released")
    with sealed.make_ledger(tmp_path / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        record(ledger, "data.sealed", dataset_id="ds_0a")
        types = {event.type for event in run_events(ledger, "run_1")}
        assert "data.sealed" not in types
        assert {"ledger.created", "policy.activated", "model.imported", "watermark.committed", "run.settled"} <= types


def record(ledger: Ledger, type_: str, **facts: Any) -> None:
    with ledger.transaction(sealed.ACTOR) as tx:
        tx.append(event(type_, facts_of(type_) | facts))


# --- what must hold before anything leaves -----------------------------------------------------------------------


def events(*types: str, passed: bool = True) -> tuple[LoggedEvent, ...]:
    return tuple(
        LoggedEvent(
            index=index,
            type=type_,
            time="",
            subject="run_1",
            policy_sha256=None,
            software={},
            facts={"run_id": "run_1", "passed": passed, "released_sha256": "00"},
        )
        for index, type_ in enumerate(types)
    )


def test_an_unmarked_adapter_never_leaves() -> None:
    with pytest.raises(PolicyDenied):
        flow._state_mark("run_1", events("run.reserved", "run.started", "run.settled"))
    with pytest.raises(PolicyDenied):  # committed to after it was trained
        flow._state_mark("run_1", events("run.reserved", "run.started", "watermark.committed", "watermark.embedded"))
    with pytest.raises(PolicyDenied):  # never committed to
        flow._state_mark("run_1", events("run.reserved", "run.started", "watermark.embedded"))
    assert flow._state_mark("run_1", events("watermark.committed", "run.started", "watermark.embedded"))


def test_no_export_without_a_passed_selftest_before_the_run() -> None:
    flow._require_selftest("run_1", events("audit.selftest", "run.started"))
    for missing in (events("run.started"), events("run.started", "audit.selftest")):
        with pytest.raises(GateFailed):
            flow._require_selftest("run_1", missing)
    with pytest.raises(GateFailed):
        flow._require_selftest("run_1", events("audit.selftest", "run.started", passed=False))


def test_export_verify_maps_what_it_cannot_do(copied: Path) -> None:
    assert flow.verify(copied / "bundle", [], None).code == VerificationIncomplete.exit_status
    with pytest.raises(ArtefactMissing):
        flow.verify(copied / "nowhere", [], None)
    with pytest.raises(UsageError):
        flow.verify(copied / "bundle", ["no", "key"], None)
