"""Foreign files are parsed in the process of the command line, which then has a limit of memory."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest

from appliance.errors import WillNotFit
from appliance.flows.data import ingest as flow
from appliance.isolation import process
from tests.adversarial.test_words_from_outside import Opened, bare, opened

__all__ = ["bare", "opened"]


def use_up() -> list[bytes]:
    """Hold all that this process has free inside of what it holds, which other tests may have left; growth shows."""
    gc.collect()  # what others left in cycles would be freed in the midst of it
    hoard: list[bytes] = []
    for size in (64, 3_000, 100_000):
        before = process.own_memory()
        while process.own_memory() < before + (1 << 20):
            hoard += [bytes(size) for _ in range(200)]
    return hoard


@pytest.mark.parametrize("opened", ["sqlite"], indirect=True)
def test_a_file_that_needs_more_memory_than_its_size_allows_is_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of two million words takes far more than its four megabytes."""
    with opened.notes.open("a") as file:
        file.write("p,how?," + "a b c d " * 500_000 + "\n")
    opened.ingest("--name", "roomy")
    files, limits = opened.files, resource.getrlimit(resource.RLIMIT_DATA)
    hoard = use_up()
    with monkeypatch.context() as narrow:
        narrow.setattr(flow, "_GROWTH", 0)
        narrow.setattr(flow, "_MEMORY", 8 << 20)
        _, said = opened.ingest("--name", "narrow", expect=9)
    assert hoard
    assert "more memory" in said
    assert opened.files == files
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    opened.ingest("--name", "again")


def test_what_a_process_holds_already_is_not_counted() -> None:
    """Else whoever comes with much in memory, as a long session does, could read no file."""
    hoard = bytes(64 << 20)
    with process.growth_limited(32 << 20):
        small = bytearray(8 << 20)
    with pytest.raises(WillNotFit, match="more memory"), process.growth_limited(32 << 20):
        bytearray(256 << 20)
    assert len(hoard) + len(small) == 72 << 20


def test_the_limit_follows_the_size_of_the_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 30)
    assert flow.memory_for([tmp_path / "a", tmp_path / "b", tmp_path / "missing"]) == (2 << 30) + (128 << 30)
