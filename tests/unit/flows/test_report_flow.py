"""`report build` on a real ledger: sealed, checked by the stand-alone verifier, rebuilt to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import ArtefactMissing, UsageError
from appliance.events.catalog import event
from appliance.export.verify import INCOMPLETE, OK, TAMPERED, verify
from appliance.flows.release.report import DOCUMENTS, write
from appliance.flows.release.sealing import Sealed
from appliance.flows.release.told import citable
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.report.documents import documents
from appliance.report.evidence import SignedHead
from tests.builders import desk_at
from tests.unit.report.story import HEX, RUN, WHOLE


def record(ledger: Ledger, actor: Actor, last: str = "") -> None:
    """The whole story, or the story up to an event."""
    for type_, _, facts in WHOLE:
        with ledger.transaction(actor, policy_sha256=HEX[5]) as tx:
            tx.append(event(type_, facts))
        if type_ == last:
            return


def keys(ledger: Ledger, directory: Path) -> list[str]:
    path = directory / "keys.txt"
    path.write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
    return [str(path)]


@pytest.fixture
def built(ledger: Ledger, actor: Actor, tmp_path: Path) -> Sealed:
    """The report of the whole story."""
    record(ledger, actor)
    return write(desk_at(ledger, actor), RUN, tmp_path / "report")


def test_the_stand_alone_verifier_accepts_it(built: Sealed, ledger: Ledger, tmp_path: Path) -> None:
    seen = verify(str(built.path), keys(ledger, tmp_path))
    assert (seen.code, seen.problems, seen.missing) == (OK, [], [])
    (count,) = [line for line in seen.checked if line.startswith("documents:")]
    assert int(count.split()[1]) > 300
    names = {path.name for path in built.path.iterdir()}
    assert names == {*DOCUMENTS, "verify.py", "manifest.json", "ledger"}


def test_without_a_pinned_key_it_is_incomplete(built: Sealed) -> None:
    assert verify(str(built.path), []).code == INCOMPLETE


@pytest.mark.parametrize("name", DOCUMENTS[:3])
def test_a_changed_figure_is_refused(name: str, built: Sealed, ledger: Ledger, tmp_path: Path) -> None:
    path = built.path / name
    data = path.read_bytes()
    assert b"3.8794" in data
    path.write_bytes(data.replace(b"3.8794", b"1.8794"))
    assert verify(str(built.path), keys(ledger, tmp_path)).code == TAMPERED


def test_the_entry_names_the_tree_head_of_the_report(built: Sealed, ledger: Ledger) -> None:
    leaf = ledger.entry(built.index).leaf
    twin = json.loads((built.path / "report.json").read_bytes())
    assert leaf["type"] == "report.built"
    assert (leaf["facts"]["tree_size"], leaf["facts"]["root"]) == (twin["tree_size"], twin["root"])
    assert leaf["policy_sha256"] == HEX[5]
    assert twin["tree_size"] == built.index


def test_it_is_rebuilt_to_the_same_bytes_after_the_ledger_has_grown(
    built: Sealed, ledger: Ledger, actor: Actor, tmp_path: Path
) -> None:
    twin = json.loads((built.path / "report.json").read_bytes())
    with ledger.transaction(actor) as tx:
        tx.append(event("policy.activated", {"name": "later", "sha256": HEX[5]}))
        tx.append(event("run.failed", {**WHOLE[2][2], "run_id": "run_later"}))
    second = write(desk_at(ledger, actor), RUN, tmp_path / "second")
    assert verify(str(second.path), keys(ledger, tmp_path)).code == OK
    assert b"run_later" in (second.path / "report.html").read_bytes()
    head = SignedHead(origin=twin["origin"], size=twin["tree_size"], root=twin["root"], note="")
    again = documents(RUN, citable(ledger), head)
    assert {name: again[name] for name in DOCUMENTS} == {name: (built.path / name).read_bytes() for name in DOCUMENTS}


@pytest.mark.parametrize("last", ["run.reserved", "run.started"])
def test_an_unfinished_run_may_be_reported(last: str, ledger: Ledger, actor: Actor, tmp_path: Path) -> None:
    record(ledger, actor, last)
    built = write(desk_at(ledger, actor), RUN, tmp_path / "report")
    assert verify(str(built.path), keys(ledger, tmp_path)).code == OK
    assert json.loads((built.path / "report.json").read_bytes())["verdict"]["tone"] == "open"


def test_the_entry_of_the_data_is_left_out(ledger: Ledger, actor: Actor, tmp_path: Path) -> None:
    facts = {
        "dataset_id": WHOLE[4][2]["dataset_id"], "name": "notes", "purpose": "training", "class": "default",
        "unit_kind": "record", "unit_key": None, "max_records": 1, "declared_units": 600, "format": "completion",
        "object_blake3": HEX[0], "key_epoch": 1, "overlaps": ["ds_secret"], "fingerprints_blake3": HEX[1],
        "source": "csv",
    }  # fmt: skip
    with ledger.transaction(actor) as tx:
        tx.append(event("data.sealed", facts))
    record(ledger, actor)
    built = write(desk_at(ledger, actor), RUN, tmp_path / "report")
    for path in built.path.rglob("*"):
        assert path.is_dir() or b"ds_secret" not in path.read_bytes()


def test_refusals_leave_nothing(built: Sealed, ledger: Ledger, actor: Actor, tmp_path: Path) -> None:
    size = ledger.sign().size
    with pytest.raises(ArtefactMissing):
        write(desk_at(ledger, actor), "run_none", tmp_path / "none")
    with pytest.raises(UsageError):
        write(desk_at(ledger, actor), RUN, built.path)
    assert ledger.sign().size == size
    assert not (tmp_path / "none").exists()
