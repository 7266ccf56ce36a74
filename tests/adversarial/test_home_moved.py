"""Homes that are copied, restored or pointed elsewhere: what the ledger says of their places holds, the agent sees."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, ArtefactMissing, IntegrityError, KeyUnavailable, UsageError
from appliance.events.home import HomeConfigured
from appliance.events.key import KeyLocked
from appliance.events.run import RunStarted
from appliance.flows import key
from appliance.flows import policy as policies
from appliance.flows import verify as flow
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.init import Places, init
from appliance.flows.relocate import Move, relocate

PASSPHRASE = b"correct horse battery staple"
ANN = Operator(name="ann")


def make(root: Path, places: Places | None = None) -> Home:
    return init(root, policies.load("demo"), bytearray(PASSPHRASE), ANN, places or Places()).home


def edit(root: Path, **changes: str) -> Home:
    """Change `home.json` as anybody with an editor can."""
    path = root / "home.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Home.open(root)


def use(home: Home) -> bytes:
    """State that a run starts, and prove it to the key agent: what every training run begins with."""
    started = RunStarted(run_id="run_1", dataset_id="ds_1", attempts_left=1, nonce=secrets.token_hex(16))
    with Desk.open(home, ANN) as desk:
        return desk.prove(desk.record(started))


def write(home: Home) -> None:
    with Desk.open(home, ANN) as desk:
        desk.record(KeyLocked())


@pytest.fixture
def outside(tmp_path: Path) -> Home:
    """A home whose anchor and epoch keys lie elsewhere."""
    places = Places(anchor_dir=tmp_path / "volume", epoch_keys=tmp_path / "device")
    return make(tmp_path / "home", places)


@pytest.fixture
def unsealed(tmp_path: Path) -> Iterator[Home]:
    """A home with everything inside, whose key agent runs."""
    home = make(tmp_path / "home")
    key.unlock(home, bytearray(PASSPHRASE), ANN, ttl_s=600)
    yield home
    home.agent().lock()


def test_a_home_says_from_its_first_moment_where_its_parts_lie(outside: Home) -> None:
    with outside.reader() as ledger:
        (entry,) = ledger.entries(HomeConfigured)
    assert entry.index == 1
    facts = entry.leaf["facts"]
    assert (facts["database"], facts["anchor"], facts["epoch_keys"]) == ("home", "outside", "outside")
    assert str(outside.anchor) not in json.dumps(entry.leaf)


def test_a_restored_old_home_with_another_anchor_is_refused(outside: Home, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(outside.root, old)
    shutil.copy(outside.anchor, tmp_path / "old-anchor")
    write(outside)
    shutil.rmtree(outside.root)
    shutil.copytree(old, outside.root)
    with pytest.raises(IntegrityError, match="rolled back or cut off"):
        write(outside)
    size = shutil.copy(tmp_path / "old-anchor", tmp_path / "elsewhere")
    moved = edit(outside.root, anchor=str(size))
    with pytest.raises(IntegrityError, match="lie elsewhere than the home says"):
        write(moved)
    with pytest.raises(IntegrityError, match="lie elsewhere than the home says"):
        policies.activate(moved, policies.load("health"), ANN)
    found = flow.verify(moved, lambda *_: None)
    assert "lie elsewhere than the home says" in " ".join(found.verification.problems)
    inside = edit(outside.root, anchor="")
    inside.anchor.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "old-anchor", inside.anchor)
    with pytest.raises(IntegrityError, match="lie elsewhere than the home says"):
        write(inside)


@pytest.mark.parametrize("name", ["anchor", "epoch_keys", "database_url", "origin"])
def test_no_part_of_the_configuration_can_be_edited(outside: Home, tmp_path: Path, name: str) -> None:
    before = json.loads((outside.root / "home.json").read_text())
    elsewhere = tmp_path / "elsewhere"
    copies = {"anchor": outside.anchor, "database_url": outside.root / "ledger.db", "epoch_keys": outside.epoch_keys}
    if name in copies:
        source = copies[name]
        shutil.copytree(source, elsewhere) if source.is_dir() else shutil.copy(source, elsewhere)
    value = f"sqlite:///{elsewhere}" if name == "database_url" else str(elsewhere)
    with pytest.raises(ApplianceError):
        write(edit(outside.root, **{name: value}))
    write(edit(outside.root, **before))


def test_a_home_can_lie_elsewhere_as_a_whole(outside: Home, tmp_path: Path) -> None:
    shutil.move(outside.root, tmp_path / "moved")
    write(Home.open(tmp_path / "moved"))


def test_a_copy_of_an_unsealed_home_whose_anchor_points_to_nothing_is_refused(unsealed: Home, tmp_path: Path) -> None:
    use(unsealed)
    copy = copied(unsealed, tmp_path)
    assert copy.agent().status().state == "unsealed"
    nowhere = edit(copy.root, anchor=str(tmp_path / "nothing" / "anchor"))
    with pytest.raises(IntegrityError):
        use(nowhere)
    use(unsealed)


def test_the_key_agent_serves_no_copy_of_its_home(unsealed: Home, tmp_path: Path) -> None:
    copy = copied(unsealed, tmp_path)
    with pytest.raises(KeyUnavailable, match="lies elsewhere"):
        use(copy)
    use(unsealed)


@pytest.mark.parametrize("ours", [0, 1, 2])
def test_nor_one_that_says_it_is_the_original(
    unsealed: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: int
) -> None:
    copy = copied(unsealed, tmp_path)
    for _ in range(ours):
        use(unsealed)
    places = unsealed.places
    monkeypatch.setattr(Home, "places", property(lambda _: places))
    with pytest.raises((KeyUnavailable, IntegrityError), match="has seen"):
        use(copy)
    use(unsealed)


def copied(home: Home, tmp_path: Path) -> Home:
    """A copy of an unsealed home whose socket is that of the live agent."""
    root = tmp_path / "copy"
    shutil.copytree(home.root, root, ignore=shutil.ignore_patterns("agent"))
    (root / "agent").symlink_to(home.root / "agent")
    return Home.open(root)


def test_a_rolled_back_home_under_a_live_agent_is_refused(unsealed: Home, tmp_path: Path) -> None:
    old = copied(unsealed, tmp_path).root
    use(unsealed)
    for name in ("ledger.db", "anchor"):
        there, back = unsealed.root / name, old / name
        shutil.rmtree(there) if there.is_dir() else there.unlink()
        shutil.copytree(back, there) if back.is_dir() else shutil.copy(back, there)
    for leftover in unsealed.root.glob("ledger.db-*"):
        leftover.unlink()
    with pytest.raises((KeyUnavailable, IntegrityError)):
        use(unsealed)


# --- moving -----------------------------------------------------------------------------------------------------------


def test_parts_are_moved_by_a_verb_that_the_ledger_remembers(outside: Home, tmp_path: Path) -> None:
    shutil.copytree(outside.epoch_keys, tmp_path / "device-2")
    shutil.copy(outside.root / "ledger.db", tmp_path / "elsewhere.db")
    before = outside.configuration
    move = Move(
        database_url=f"sqlite:///{tmp_path / 'elsewhere.db'}",
        anchor_dir=tmp_path / "volume-2",
        epoch_keys=tmp_path / "device-2",
    )
    stated = relocate(outside, ANN, move)
    moved = Home.open(outside.root)
    write(moved)
    assert stated == moved.configuration != before
    with moved.reader() as ledger:
        assert [HomeConfigured.of(e.leaf["facts"]) for e in ledger.entries(HomeConfigured)] == [before, stated]
    assert flow.verify(moved, lambda *_: None).verification.problems == ()
    key.unlock(moved, bytearray(PASSPHRASE), ANN, ttl_s=600)
    try:
        use(moved)
        with pytest.raises(UsageError, match="the key agent serves the places"):
            relocate(moved, ANN, Move())
    finally:
        moved.agent().lock()


def test_a_move_that_was_interrupted_is_ended_by_doing_it_again(
    outside: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(anchor_dir=tmp_path / "volume-2")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Desk, "record", die)
        with pytest.raises(KeyboardInterrupt):
            relocate(outside, ANN, move)
    half = Home.open(outside.root)
    with pytest.raises(IntegrityError, match="lie elsewhere than the home says"):
        write(half)
    relocate(half, ANN, move)
    write(Home.open(outside.root))


def test_nothing_is_moved_to_where_it_is_not(outside: Home, tmp_path: Path) -> None:
    before = (outside.root / "home.json").read_bytes()
    stranger = make(tmp_path / "stranger")
    with pytest.raises(ArtefactMissing):
        relocate(outside, ANN, Move(epoch_keys=tmp_path / "empty"))
    with pytest.raises(IntegrityError):
        relocate(outside, ANN, Move(database_url=f"sqlite:///{stranger.root / 'ledger.db'}"))
    with pytest.raises(UsageError, match="inside the home"):
        relocate(outside, ANN, Move(anchor_dir=outside.root / "anchor"))
    (tmp_path / "volume-3").mkdir()
    (tmp_path / "volume-3" / outside.anchor.name).write_text("another")
    with pytest.raises(UsageError, match="is another anchor"):
        relocate(outside, ANN, Move(anchor_dir=tmp_path / "volume-3"))
    assert (outside.root / "home.json").read_bytes() == before
    write(outside)


def test_an_older_copy_of_the_database_is_not_moved_to(outside: Home, tmp_path: Path) -> None:
    old = shutil.copy(outside.root / "ledger.db", tmp_path / "old.db")
    write(outside)
    with pytest.raises(IntegrityError, match="rolled back or cut off"):
        relocate(outside, ANN, Move(database_url=f"sqlite:///{old}"))
    write(outside)
