"""Two commands at once: whoever comes second is refused, and takes nothing from the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import UsageError
from appliance.files import staged_directory
from appliance.flows import init as flow
from appliance.flows import key
from appliance.flows import policy as policies
from appliance.flows.home import Home, Operator
from appliance.store import keyslots

PASSPHRASE = b"correct horse battery staple"
ANN = Operator(name="ann")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a guess of the passphrase cost nothing."""
    least = keyslots.Argon2Cost(memory_kib=8, iterations=1, lanes=1)
    monkeypatch.setattr(keyslots, "Argon2Cost", lambda: least)


def make(root: Path, places: flow.Places) -> Home:
    return flow.init(root, policies.load("demo"), bytearray(PASSPHRASE), ANN, places).home


@pytest.mark.parametrize("second", ["home", "other"])
def test_an_init_that_comes_second_leaves_the_first_its_keys_and_anchor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    places = flow.Places(anchor_dir=tmp_path / "volume", epoch_keys=tmp_path / "device", origin="hospital.example/log")
    made = []

    def begin(root: Path) -> object:
        """Let another `init` be faster, once this one has seen that nothing is there."""
        monkeypatch.setattr(flow, "staged_directory", staged_directory)
        made.append(make(tmp_path / "home", places))
        return staged_directory(root)

    monkeypatch.setattr(flow, "staged_directory", begin)
    with pytest.raises(UsageError):
        make(tmp_path / second, places)
    (home,) = made
    key.unlock(home, bytearray(PASSPHRASE), ANN, ttl_s=60)
    try:
        home.agent().ingest_keys("ds_1")
    finally:
        assert key.lock(home, ANN)


def test_an_init_that_fails_leaves_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = flow.Places(anchor_dir=tmp_path / "volume", epoch_keys=tmp_path / "device")
    monkeypatch.setattr(flow, "to_json", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "home", places)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
