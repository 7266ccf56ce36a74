"""Ending the key agent, where it ends by itself meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import KeyUnavailable
from appliance.flows.key import _tell_to_lock
from appliance.store.client import AgentClient, AgentStatus


def seen(monkeypatch: pytest.MonkeyPatch, path: Path, *states: str) -> AgentClient:
    """Make a client of no agent whose looks say these states, one after another."""
    client, left = AgentClient(path / "socket"), [AgentStatus(state) for state in states]
    monkeypatch.setattr(client, "status", lambda: left.pop(0))
    return client


def test_an_agent_that_ends_before_it_hears_the_lock_was_sealed_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _tell_to_lock(seen(monkeypatch, tmp_path, "sealed"))
    assert not _tell_to_lock(seen(monkeypatch, tmp_path, "unsealed", "sealed"))


def test_an_agent_that_does_not_take_the_lock_and_goes_on_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyUnavailable):
        _tell_to_lock(seen(monkeypatch, tmp_path, "unsealed", "unsealed"))
