"""The roster: one pseudonym for a name, whoever asks first, and it lasts."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.errors import IntegrityError, UsageError
from appliance.identity.people import recognise


def test_a_name_keeps_its_pseudonym_whoever_asks_first(tmp_path: Path) -> None:
    roster = tmp_path / "people.json"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: recognise(roster, "ada").pseudonym, range(24)))
    assert len(found) == 1
    assert recognise(roster, "grace").pseudonym not in found
    assert stat.S_IMODE(roster.stat().st_mode) == 0o600


def test_a_name_has_one_pseudonym_in_every_form_that_keyboards_write(tmp_path: Path) -> None:
    roster = tmp_path / "people.json"
    roster.write_text('{"Zoe\u0308 M.": "p_decomposed"}')  # as an earlier release took it from a Mac
    assert recognise(roster, "Zo\u00eb M.").pseudonym == recognise(roster, "Zoe\u0308 M.").pseudonym == "p_decomposed"
    assert recognise(roster, "Zoe M.").pseudonym != "p_decomposed"


def test_a_new_name_lasts_before_its_pseudonym_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    recognise(tmp_path / "people.json", "ada")
    assert synced == [str(tmp_path / ".people.json.partial"), str(tmp_path)]  # the content, then the name of the file


def test_what_is_no_name_or_no_roster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        recognise(tmp_path / "people.json", "a\nb")
    (tmp_path / "people.json").write_bytes(b"[]")
    with pytest.raises(IntegrityError):
        recognise(tmp_path / "people.json", "ada")
