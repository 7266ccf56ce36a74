"""Changing the signing keys: both sets sign, each holds for its sizes, a crash anywhere needs no repair."""

from __future__ import annotations

import base64
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.events.key import KeyLocked
from appliance.ledger import keyring, proof, signing
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor, parse_leaf
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import VerifierKey, open_checkpoint
from appliance.ledger.reading import LedgerReader
from tests.databases import Behind, attack
from tests.unit.ledger.conftest import Clock


def events(ledger: Ledger, count: int = 3) -> None:
    for _ in range(count):
        with ledger.transaction(Actor("p-1", "")) as tx:
            tx.append(KeyLocked())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_both_sets_sign_and_each_holds_for_its_sizes(ledger: Ledger, config: LedgerConfig, actor: Actor) -> None:
    events(ledger)
    first = ledger.verifier_keys
    early = ledger.sign()
    events(ledger)
    index, head = ledger.rotate(actor, "yearly")
    second = ledger.verifier_keys
    assert not set(first) & set(second)
    assert head.size == index + 1
    assert [keys.since for keys in ledger.key_sets] == [0, index + 1]
    events(ledger)
    late = ledger.sign()
    old, new = ([VerifierKey.parse(text) for text in keys] for keys in (first, second))
    assert open_checkpoint(early.note, old, exact=True).size == early.size
    assert open_checkpoint(late.note, new, exact=True).size == late.size
    for note, keys in ((early.note, new), (late.note, old), (head.note, old)):
        with pytest.raises(IntegrityError):
            open_checkpoint(note, keys)
    assert proof.verify(ledger.prove(1), ledger.leaf(1), second).index == 1
    for trusted in ((), first, second):  # whoever pinned the old keys is led to the new ones
        found = ledger.verify(trusted=trusted, kept=[early.note, late.note])
        assert found.problems == ()
        assert [keys.texts for keys in found.key_sets] == [first, second]
    assert ledger.head(covering=1) == ledger.head(covering=early.size - 1)
    assert ledger.keys_at(early.size).texts == first
    assert not (config.signing_dir / "next").exists()


def test_again_and_again(ledger: Ledger, config: LedgerConfig, actor: Actor) -> None:
    pinned = ledger.verifier_keys
    for _ in range(3):
        ledger.rotate(actor)
    events(ledger, 1)
    ledger.close()
    with Ledger.open(config) as again:
        assert len(again.key_sets) == 4
        assert again.verify(trusted=pinned).ok
        again.rotate(actor)
    with Ledger.open(config) as again:
        assert again.verify(trusted=pinned).ok


def test_after_the_clock_stepped_back(ledger: Ledger, clock: Clock, actor: Actor) -> None:
    events(ledger)
    clock.now -= timedelta(hours=1)
    index, _ = ledger.rotate(actor)
    assert ledger.entry(index - 1).leaf["type"] == "clock.regression"
    assert ledger.verify().ok


@pytest.mark.parametrize("moved", range(4))
def test_a_crash_after_the_commit_is_continued(
    ledger: Ledger, config: LedgerConfig, actor: Actor, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends with the log changed and so many of the three files moved."""
    events(ledger)
    anchored = config.anchor.read_bytes()

    def half(directory: Path, keys: keyring.Keys) -> bool:
        if not (directory / "next").exists():
            return True
        for name in ("ed25519.seed", "mldsa44.seed", "verifier.keys")[:moved]:
            (directory / "next" / name).rename(directory / name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("appliance.ledger.ledger.promote", half)
        with pytest.raises(KeyboardInterrupt):
            ledger.rotate(actor)
    assert config.anchor.read_bytes() == anchored
    with LedgerReader.open(config) as reader:
        assert reader.verify().problems == ()
    with Ledger.open(config) as again:
        events(again, 1)
        again.sign()
        assert again.verify().ok
        assert len(again.key_sets) == 2
    assert not (config.signing_dir / "next").exists()


def test_a_crash_before_the_commit_changes_nothing(
    ledger: Ledger, config: LedgerConfig, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    events(ledger)
    before = ledger.verifier_keys
    with monkeypatch.context() as patched:
        patched.setattr("appliance.ledger.ledger.rekey", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.rotate(actor)
    assert (config.signing_dir / "next").exists()
    left = contents(config.signing_dir / "next")
    assert ledger.verifier_keys == before
    events(ledger, 1)
    ledger.sign()
    ledger.rotate(actor)
    assert ledger.verify().ok
    assert contents(config.signing_dir)["ed25519.seed"] != left["ed25519.seed"]  # the unused keys were not taken


def test_another_process_signs_with_the_new_keys(ledger: Ledger, config: LedgerConfig, actor: Actor) -> None:
    with Ledger.open(config) as other:
        events(other, 1)
        ledger.rotate(actor)
        events(other, 1)
        head = other.sign()
        assert open_checkpoint(head.note, [VerifierKey.parse(key) for key in ledger.verifier_keys], exact=True)
    assert ledger.verify().ok


def test_keys_from_before_a_change_do_not_open_it_for_writing(
    config: LedgerConfig, actor: Actor, tmp_path: Path
) -> None:
    ledger = Ledger.create(config)
    shutil.copytree(config.signing_dir, tmp_path / "kept")
    ledger.rotate(actor)
    ledger.close()
    shutil.rmtree(config.signing_dir)
    shutil.copytree(tmp_path / "kept", config.signing_dir)
    with pytest.raises(IntegrityError, match="signing keys are not those"):
        Ledger.open(config)
    with LedgerReader.open(config) as reader:
        assert reader.verify().ok


def test_a_database_from_before_the_change_is_behind_its_anchor(
    config: LedgerConfig, behind: Behind, actor: Actor
) -> None:
    ledger = Ledger.create(config)
    events(ledger)
    ledger.sign()
    ledger.close()
    copy = behind.copy()
    with Ledger.open(config) as later:
        later.rotate(actor)
    behind.restore(copy)
    with pytest.raises(IntegrityError, match="it was rolled back or cut off"):
        Ledger.open(config)
    with LedgerReader.open(config, checked=False) as reader:
        assert not reader.verify().ok


def forge(leaf: dict[str, Any], ring: keyring.Keyring, **changes: Any) -> bool:
    """Whether an altered leaf that changes the keys is taken."""
    try:
        ring.follow({**leaf, "index": changes.pop("index", leaf["index"]), "facts": {**leaf["facts"], **changes}})
    except IntegrityError:
        return False
    return True


def test_what_no_change_of_keys_is(ledger: Ledger, config: LedgerConfig, actor: Actor, tmp_path: Path) -> None:
    before = keyring.Keyring.of(tuple(VerifierKey.parse(key) for key in ledger.verifier_keys))
    index, _ = ledger.rotate(actor)
    leaf = parse_leaf(ledger.leaf(index))
    assert forge(leaf, before)
    signatures = leaf["facts"]["signatures"]
    signing.create_keys(tmp_path / "rogue", config.origin)
    rogue = signing.load_signers(tmp_path / "rogue", Clock())
    keys = keyring.describe(tuple(signer.verifier for signer in rogue))
    said = keyring.statement(
        config.origin, index, leaf["facts"]["root"], before.current.keys, tuple(k.verifier for k in rogue)
    )
    by_rogue = [base64.b64encode(signer.sign_statement(said)).decode() for signer in rogue]
    assert not forge(leaf, before, keys=keys, signatures=[*signatures[:2], *by_rogue])
    assert not forge(leaf, before, keys=keys, signatures=[*by_rogue, *by_rogue])
    for n in range(4):
        assert not forge(leaf, before, signatures=[*signatures[:n], signatures[n - 1], *signatures[n + 1 :]])
        assert not forge(leaf, before, signatures=[*signatures[:n], *signatures[n + 1 :]])
    assert not forge(leaf, before, root="0" * 64)
    assert not forge(leaf, before, index=index + 1)
    assert not forge(leaf, before, keys=leaf["facts"]["keys"][::-1])
    assert not forge(leaf, before, keys=leaf["facts"]["keys"][:1], signatures=signatures[:3])
    assert not forge(leaf, before, old=leaf["facts"]["old"][:1])
    assert not forge(leaf, before, signatures=None)
    assert not forge(leaf, before, keys=[1, 2])
    after = before.follow(leaf)
    assert not forge(leaf, after)  # it cannot be said twice


def test_a_log_signed_anew_with_rogue_keys_fails(config: LedgerConfig, behind: Behind, actor: Actor) -> None:
    """Whoever has the database and not the old keys writes an entry that names keys of their own."""
    ledger = Ledger.create(config)
    events(ledger)
    pinned = ledger.verifier_keys
    index, _ = ledger.rotate(actor)
    ledger.close()
    leaf = bytes(behind.rows(f"SELECT leaf FROM entry WHERE idx = {index}")[0][0])
    vkey = parse_leaf(leaf)["facts"]["keys"][0]["vkey"]
    public = bytes(range(32))
    rogue = VerifierKey(config.origin, 1, public).encode()
    changed = leaf.replace(vkey.encode(), rogue.encode())
    value = f"X'{changed.hex()}'" if behind.kind == "sqlite" else f"'\\x{changed.hex()}'"
    attack(behind, f"UPDATE entry SET leaf = {value} WHERE idx = {index}")
    with LedgerReader.open(config, checked=False) as reader:
        found = reader.verify(trusted=pinned)
    assert f"entry {index} changes the signing keys, but the old and the new did not both sign it" in found.problems
    assert found.first_bad == index
    with pytest.raises(IntegrityError):
        Ledger.open(config)
