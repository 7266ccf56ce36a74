"""Power loss under PostgreSQL: every process of a real server is traced, and so is the process that uses the ledger.

As in `test_ledger_replay`: after any of their system calls the disk is made as it would be if the power failed then,
with the writes that were not synced lost in part or in whole, pages torn at 512 bytes. A server is started on it, which
recovers by itself, and the ledger in it opened as usual, beside its own files, which were on the same disk.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, ConfigInvalid
from appliance.ledger.config import LedgerConfig
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from tests import postgres
from tests.fault.disk import Disk, chooser
from tests.fault.ledger_writer import Uses, configuration
from tests.fault.test_ledger_crash import Acknowledged
from tests.fault.test_ledger_replay import calls, make, replay, survives, traced
from tests.fault.trace import Step, steps
from tests.postgres import ERASER, OWNER, Server

DATABASE = "ledger"
# As in production but small, so that pages leave the buffers and segments of the log are used again. The ledger's
# sessions set synchronous_commit for themselves; that they do is tested by this default.
SETTINGS = (
    *("listen_addresses=''", "max_connections=10", "shared_buffers=512kB", "bgwriter_delay=10ms", "autovacuum=off"),
    *("synchronous_commit=off", "min_wal_size=4MB", "max_wal_size=8MB"),
)
SAFE = (*SETTINGS, "fsync=on", "full_page_writes=on")  # which they are anyway, but for what is planted below
PROGRAM = "import sys; from tests.fault.test_ledger_replay_postgres import use; use(*sys.argv[1:])"
USES = (
    *("append", "sign", "checkpoint", "rotate", "append", "erase", "segment", "append", "export", "checkpoint"),
    *("append", "segment", "sign", "append"),
)


class ServerUses(Uses):
    """What is done with a ledger, and meanwhile with the server."""

    server: Server

    def _execute(self, *statements: str) -> None:
        with self.server.connect("postgres") as raw:
            for statement in statements:
                raw.execute(statement.encode())

    def checkpoint(self) -> None:
        self._execute("CHECKPOINT")

    def segment(self) -> None:
        self._execute("SELECT pg_switch_wal()")

    def unsynced(self) -> None:
        self._turn_off("fsync")

    def torn(self) -> None:
        self._turn_off("full_page_writes")
        self._execute("CHECKPOINT")

    def _turn_off(self, setting: str) -> None:
        self._execute(f"ALTER SYSTEM SET {setting} = off", "SELECT pg_reload_conf()")
        while True:  # until the server's process that works for the ledger knows it
            with self.ledger._database.read() as connection:
                if connection.exec_driver_sql(f"SHOW {setting}").scalar_one() == "off":
                    return


def config_in(directory: Path, owner: bool = False) -> LedgerConfig:
    server = Server(directory)
    owner_url = server.url(DATABASE, OWNER) if owner else ""
    return configuration(directory / "home", server.url(DATABASE), server.url(DATABASE, ERASER), owner_url)


def use(directory: str, *wanted: str) -> None:
    """Start the server, use the ledger in it, stop it: what is traced."""
    server = Server(Path(directory), SETTINGS)
    server.start()
    with Ledger.open(config_in(server.directory)) as ledger:
        uses = ServerUses(ledger, server.directory / "home", 1)
        uses.server = server
        for name in wanted:
            getattr(uses, name)()
    server.stop("fast")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with a new ledger, stopped; its directory has the ledger's home too."""
    try:
        made = postgres.make(settings=SETTINGS, made_with=("--wal-segsize=1",))
    except postgres.Unavailable as reason:
        pytest.skip(str(reason))
    try:
        made.create(DATABASE)
        (made.directory / "home").mkdir()
        Ledger.create(config_in(made.directory, owner=True)).close()
        made.drop("prepared")
        made.stop("fast")
        made.forget_segments()
        yield made
    finally:
        with suppress(postgres.Unavailable):
            made.stop()
        shutil.rmtree(made.directory, ignore_errors=True)


def did(server: Server, tmp_path: Path, *uses: str) -> list[Step]:
    trace = traced(tmp_path / "trace", PROGRAM, str(server.directory), *uses)
    return list(steps(trace, server.directory, server.directory / "data"))


def recovers(server: Server, state: dict[Path, bytes | None], told: Acknowledged) -> None:
    """A server comes up on this disk by itself, and the ledger in it survived."""
    again = Server(server.directory.with_name(f"{server.directory.name}-again"), SAFE)
    try:
        make(again.directory, state)
        postgres.own(again.directory)
        (again.directory / "data").chmod(0o700)
        again.start()
        survives(config_in(again.directory), told)
        again.stop()
    finally:
        with suppress(postgres.Unavailable):
            again.stop()
        shutil.rmtree(again.directory, ignore_errors=True)


@pytest.mark.timeout(7200)
def test_no_loss_of_power_loses_what_was_acknowledged(
    server: Server, tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    disk = Disk(server.directory)
    done = did(server, tmp_path, *USES)
    first, last = (calls(done[: spoken(done)[place]]) for place in (0, -1))
    number = calls(done)
    points = {last + 1, *random.Random(13).sample(range(first, number + 1), stress_count(2, 100))}
    told, tried = replay(done, disk, points, partial(recovers, server), (0.0, 0.5, 1.0))
    assert len(told.rows) == 9
    assert (len(told.heads), len(told.erased), len(told.exported)) == (3, 1, 1)
    assert {"a new segment", "a segment used again"} == {segment_made(step) for step in done} - {""}
    assert tried == 3 * len(points)
    print(f"{tried} states after {len(points)} of {number} calls")


def spoken(done: Sequence[Step]) -> list[int]:
    """Where something was said."""
    return [place for place, step in enumerate(done) if step.kind == "say"]


def segment_made(step: Step) -> str:
    """How a segment of the server's log came to its name."""
    if step.kind != "rename" or step.path.parent.name != "pg_wal":
        return ""
    return "a new segment" if step.path.name.startswith("xlogtemp") else "a segment used again"


def test_a_server_that_does_not_sync_is_noticed(server: Server, tmp_path: Path) -> None:
    """The same replay finds what is lost when fsync is turned off behind a ledger that is open."""
    disk = Disk(server.directory)
    done = did(server, tmp_path, "append", "unsynced", "append")
    told, _ = replay(done[: spoken(done)[-1] + 1], disk, (), lambda *_: None)
    state = disk.state(lambda: False)
    believed = Acknowledged(dict(sorted(told.rows.items())[:1]))
    assert len(told.rows) == 2
    recovers(server, state, believed)
    with pytest.raises(AssertionError, match="items in the left set"):
        recovers(server, state, told)
    recovers(server, disk.state(lambda: True), told)


def test_a_server_without_full_page_writes_is_noticed(server: Server, tmp_path: Path) -> None:
    """And pages that were torn, when those are turned off."""
    disk = Disk(server.directory)
    done = did(server, tmp_path, "append", "torn", "append", "sign", "append", "checkpoint")
    after = spoken(done)[-1] + 1
    pages = next(i for i, step in enumerate(done) if i > after and step.kind == "sync" and "base" in step.path.parts)
    told, _ = replay(done[:pages], disk, (), lambda *_: None)
    for whole in (True, False):
        recovers(server, disk.state(lambda whole=whole: whole), told)
    with pytest.raises((postgres.Unavailable, ApplianceError)):
        recovers(server, disk.state(chooser(random.Random(14), 0.5)), told)


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_would_lose_entries_is_refused(server: Server, setting: str) -> None:
    replace(server, settings=(*SETTINGS, f"{setting}=off")).start()
    config = config_in(server.directory)
    with pytest.raises(ConfigInvalid, match=f"{setting} = off"):
        Ledger.open(config)
    with LedgerReader.open(config) as reader:
        assert reader.verify().ok
        assert [found.name for found in reader.findings() if not found.good] == [f"database {setting}"]
