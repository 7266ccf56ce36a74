"""Sealed directories of a log that changed its signing keys: old pins lead to the new keys, rogue keys lead nowhere."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.events.ledger import LedgerRekeyed
from appliance.export import verify
from appliance.flows.release import sealing
from appliance.ledger import keyring
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import VerifierKey
from tests.unit.export import sealed

asked_once = functools.lru_cache(maxsize=None)(verify.mldsa44_accepts)


@pytest.fixture(autouse=True)
def _each_signature_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes get the same answer: the verifier's own function, asked once."""
    monkeypatch.setattr(verify, "mldsa44_accepts", asked_once)


def pin(directory: Path, name: str, ledger: Ledger) -> None:
    (directory / f"{name}.txt").write_text("".join(f"{key}\n" for key in ledger.verifier_keys))


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles `b0`, `b1`, `b2`, made before, between and after two changes of keys; keys in `k0.txt` and so on."""
    directory = tmp_path_factory.mktemp("rotated")
    released = sealed.make_released(directory / "released")
    with sealed.make_ledger(directory / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        for number in range(3):
            if number:
                ledger.rotate(sealed.ACTOR)
            pin(directory, f"k{number}", ledger)
            sealed.export(ledger, directory, "run_1", f"b{number}")
    return directory


def seen(directory: Path, bundle: str, key: str, state: Path | None = None) -> verify.Examination:
    return verify.verify(str(directory / bundle), [str(directory / f"{key}.txt")], str(state or ""))


def test_who_pinned_old_keys_is_led_to_the_new(rotated: Path) -> None:
    for bundle, keys in (("b0", ("k0",)), ("b1", ("k0", "k1")), ("b2", ("k0", "k1", "k2"))):
        for key in keys:
            found = seen(rotated, bundle, key)
            assert (found.code, found.problems) == (0, [])
            fingerprint = hashlib.sha256((rotated / f"{key}.txt").read_bytes()).hexdigest()
            assert verify.verify(str(rotated / bundle), [fingerprint]).code == 0
        said = [line for line in found.checked if line.startswith("keys: sets 0 to")]
        assert len(said) == (len(keys) > 1)
        assert found.keys_sha256 == hashlib.sha256((rotated / f"{keys[-1]}.txt").read_bytes()).hexdigest()


def test_keys_that_came_later_do_not_vouch_for_what_they_never_signed(rotated: Path) -> None:
    for bundle, key in (("b0", "k1"), ("b0", "k2"), ("b1", "k2")):
        assert seen(rotated, bundle, key).code == 8


def test_memory_follows_the_keys(rotated: Path, tmp_path: Path) -> None:
    state = tmp_path / "seen.json"
    for bundle in ("b0", "b1", "b2", "b2"):
        assert seen(rotated, bundle, "k0", state).code == 0
    assert seen(rotated, "b1", "k0", state).code == 15
    assert seen(rotated, "b0", "k0", state).code == 15


@pytest.fixture
def rogue(rotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Ledger]]:
    """A log of the same name by somebody without the private keys, who makes it change to keys of their own."""
    shutil.copytree(rotated, tmp_path / "rogue")
    directory = tmp_path / "rogue"
    shutil.rmtree(directory / "home")
    for name in ("b1", "b2"):
        shutil.rmtree(directory / name)
    with sealed.make_ledger(directory / "home") as ledger:
        sealed.record_run(ledger, "run_1", sealed.tree_digest(directory / "released")[0])
        genuine = [VerifierKey.parse(line) for line in (directory / "k0.txt").read_text().split()]
        yield directory, forged(ledger, genuine, monkeypatch)


def forged(ledger: Ledger, genuine: list[VerifierKey], monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Whatever the ledger says of its first keys, it says of the genuine ones."""
    real = keyring.rekey

    def rekey(ring: keyring.Keyring, index: int, root: str, old: Any, new: Any) -> LedgerRekeyed:
        made = real(ring, index, root, old, new)
        return made.model_copy(update={"old": [key.encode() for key in genuine]})

    monkeypatch.setattr("appliance.ledger.ledger.rekey", rekey)
    return ledger


def test_a_log_of_somebody_elses_fails_under_the_pinned_keys(
    rogue: tuple[Path, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, ledger = rogue
    real = keyring.Keyring.follow

    def trusting(ring: keyring.Keyring, leaf: Any) -> keyring.Keyring:
        facts = {**leaf["facts"], "old": list(ring.current.texts)}
        return real(ring, {**leaf, "facts": facts})

    with monkeypatch.context() as patched:
        patched.setattr(keyring.Keyring, "follow", trusting)
        patched.setattr(VerifierKey, "has_signed", lambda *_: True)
        ledger.rotate(sealed.ACTOR)
        pin(directory, "rogue", ledger)
        sealed.export(ledger, directory, "run_1", "theirs")
    for key in ("k0", "rogue"):  # the chain is broken, whoever is trusted
        assert seen(directory, "theirs", key).code == 8


def test_a_chain_signed_by_the_new_keys_alone_fails(rotated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The genuine prefix of the log, and an entry that hands over without the old private keys."""
    directory = tmp_path / "copy"
    shutil.copytree(rotated / "released", directory / "released")
    released = sealed.tree_digest(directory / "released")[0]
    real = keyring.rekey
    with sealed.make_ledger(directory / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        pin(directory, "k0", ledger)
        with monkeypatch.context() as patched:
            patched.setattr(VerifierKey, "has_signed", lambda *_: True)
            patched.setattr("appliance.ledger.ledger.rekey", lambda ring, i, r, old, new: real(ring, i, r, new, new))
            ledger.rotate(sealed.ACTOR)
            pin(directory, "rogue", ledger)
            sealed.export(ledger, directory, "run_1", "theirs")
            monkeypatch.setattr(sealing, "_find_rekeyings", lambda *_, **__: iter(()))
            sealed.export(ledger, directory, "run_1", "silent")  # leaves the entry out
            ledger.close()
    for name in ("theirs", "silent"):
        for key in ("k0", "rogue"):
            found = seen(directory, name, key)
            assert found.code == 8, (name, key)
    assert "did not both sign" in seen(directory, "theirs", "k0").problems[0][1]
