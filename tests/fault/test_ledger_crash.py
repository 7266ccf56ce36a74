"""kill -9 of a process that uses a ledger, or of the server under it: what was acknowledged is there, rows and leaves
agree, no two signed heads contradict each other, nothing needs repair.
"""

from __future__ import annotations

import base64
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.events.key import KeyLocked
from appliance.ledger import merkle
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import Checkpoint
from appliance.ledger.reading import LedgerReader
from tests import postgres
from tests.databases import KINDS, Behind, PostgresDatabase, SQLiteFile, attack
from tests.fault.ledger_writer import configuration

REPOSITORY = Path(__file__).parent.parent.parent
USES = ("append", "sign", "rotate", "erase", "export")
LIVES_OF_A_LEDGER = 25  # then a new one: what is compared after each life grows with what was acknowledged


@dataclass
class Acknowledged:
    """What the lives of one ledger were told."""

    rows: dict[str, int] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)
    erased: set[int] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)
    rotations: int = 0

    def take(self, line: str) -> None:
        """One line of the writer; the last may be cut short."""
        kind, *words = line.split(" ")
        if kind == "row":
            self.rows[f"{int(words[0]):064d}"] = int(words[1])
        elif kind in ("signed", "rotated"):
            self.heads[int(words[0])] = base64.b64decode(words[1]).decode()
            self.rotations += kind == "rotated"
        elif kind == "erased":
            self.erased.add(int(words[0]))
        elif kind == "exported":
            self.exported.add(words[0])


@contextmanager
def living(config: LedgerConfig, life: int, *uses: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.fault.ledger_writer", str(config.anchor.parent), config.url]
    command += [config.eraser_url, str(life), *uses]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready == "ready\n", process.stderr and process.stderr.read()
        yield process
        process.kill()


def killed_after(
    config: LedgerConfig,
    life: int,
    moment: tuple[int, float],
    told: Acknowledged,
    *uses: str,
    crash: Callable[[], None] = lambda: None,
) -> None:
    """Let the writer acknowledge so much, wait so many seconds, `crash`, and kill it; note what it acknowledged."""
    acknowledgements, delay = moment
    with living(config, life, *uses) as process:
        assert process.stdout is not None
        seen = "".join(process.stdout.readline() for _ in range(acknowledgements))
        time.sleep(delay)
        crash()
        process.kill()
        seen += process.stdout.read()
    lines = [line for line in seen.splitlines(keepends=True) if line.endswith("\n")]
    assert len(lines) >= acknowledgements
    for line in lines:
        told.take(line.strip())


def check(config: LedgerConfig, told: Acknowledged) -> None:
    """Compare what is there with what was acknowledged."""
    with LedgerReader.open(config) as ledger:
        heads = [told.heads[size] for size in sorted(told.heads)]
        found = ledger.verify(kept=heads)  # every head that was shown to anybody is one the log continues
        assert found.problems == ()
        assert found.signed_size >= max(told.heads, default=1)
        assert len(found.key_sets) > told.rotations
        entries = list(ledger.entries(type="policy.activated"))
        present = {entry.leaf["facts"]["sha256"]: entry.index for entry in entries}
        with ledger.read() as catalog:
            stored = {row.sha256 for row in catalog.policies.list()}
        assert stored == present.keys()
        assert told.rows.items() <= present.items()
        verdicts = {entry.index: entry.body for entry in entries}
        assert {verdicts[index] for index in told.erased} <= {"erased"}
    exports = {path.name for path in config.anchor.parent.glob("export-*")}
    assert told.exported <= exports
    for name in exports:
        check_snapshot(config.anchor.parent / name)


def check_snapshot(directory: Path) -> None:
    """A snapshot is whole: its leaves give the root that its checkpoint was signed for."""
    text = (directory / "checkpoint").read_text().rpartition("\n\n")[0] + "\n"
    checkpoint, builder = Checkpoint.parse(text), merkle.Builder()
    for path in sorted((directory / "tile" / "entries").glob("*")):
        data = next(path.iterdir()).read_bytes() if path.is_dir() else path.read_bytes()
        while data:
            length = int.from_bytes(data[:2], "big")
            builder.push(merkle.leaf_hash(data[2 : 2 + length]))
            data = data[2 + length :]
    assert (builder.size, builder.root()) == (checkpoint.size, checkpoint.root)


def live_and_die(make: Callable[[int], LedgerConfig], lives: int, crash: Callable[[], None] = lambda: None) -> None:
    """Kill the writer so often, each life with its own mix of uses; after each time check what is there."""
    chooser = random.Random(4)
    for first in range(0, lives, LIVES_OF_A_LEDGER):
        config, told = make(first), Acknowledged()
        Ledger.create(config).close()
        for life in range(first, min(first + LIVES_OF_A_LEDGER, lives)):
            use = USES[life % len(USES)]
            moment = chooser.randrange(4), chooser.uniform(0, 0.1)
            killed_after(config, life, moment, told, use, chooser.choice(USES), crash=crash)
            check(config, told)
        with Ledger.open(config) as ledger, ledger.transaction(Actor("p-1", "")) as tx:
            tx.append(KeyLocked())
        with Ledger.open(config) as ledger:
            assert ledger.verify(kept=[told.heads[size] for size in sorted(told.heads)]).ok


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], LedgerConfig]:
    """`fresh(n)`: configuration of a ledger that there is not yet, in a database of its own."""
    if request.param == "postgres":
        server: postgres.Server = request.getfixturevalue("postgres_server")
        return on_server(server, tmp_path)

    def make(number: int) -> LedgerConfig:
        home = tmp_path / str(number)
        home.mkdir()
        return configuration(home, f"sqlite:///{home / 'ledger.db'}")

    return make


def on_server(server: postgres.Server, directory: Path) -> Callable[[int], LedgerConfig]:
    def make(number: int) -> LedgerConfig:
        name, home = f"crash_{abs(hash(directory)) % 10**8}_{number}", directory / str(number)
        home.mkdir()
        server.create(name)
        urls = PostgresDatabase(server, name).urls
        return configuration(home, urls["url"], urls["eraser_url"], urls["owner_url"])

    return make


@pytest.mark.timeout(7200)  # the full count on a busy machine
def test_killed_at_random_nothing_acknowledged_is_lost(
    fresh: Callable[[int], LedgerConfig], stress_count: Callable[[int, int], int]
) -> None:
    live_and_die(fresh, stress_count(10, 500))


@pytest.mark.timeout(7200)
def test_a_server_killed_at_random_loses_nothing_acknowledged(
    tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    """All processes of a server of its own get SIGKILL at once; it then recovers by itself when it is started."""
    try:
        server = postgres.make()
    except postgres.Unavailable as reason:
        pytest.skip(str(reason))

    def crash() -> None:
        server.kill()
        server.start()

    try:
        live_and_die(on_server(server, tmp_path), stress_count(3, 100), crash)
    finally:
        postgres.remove(server)


def behind_of(config: LedgerConfig, server: postgres.Server | None) -> Behind:
    name = config.url.partition("?")[0].rpartition("/")[2]
    return PostgresDatabase(server, name) if server else SQLiteFile(config.anchor.parent / name)


def test_the_check_above_can_fail(fresh: Callable[[int], LedgerConfig], request: pytest.FixtureRequest) -> None:
    """The same comparison notices a row that lost its leaf, an acknowledgement that is not true, a torn snapshot."""
    config, told = fresh(0), Acknowledged()
    Ledger.create(config).close()
    killed_after(config, 0, (len(USES), 0.0), told, *USES)
    check(config, told)
    for claim in ("row 99999999 1", "erased 0", "exported export-never"):
        believed = Acknowledged(dict(told.rows), dict(told.heads), set(told.erased), set(told.exported))
        believed.take(claim)
        with pytest.raises((AssertionError, KeyError)):
            check(config, believed)
    server = None if config.url.startswith("sqlite") else request.getfixturevalue("postgres_server")
    attack(behind_of(config, server), "DELETE FROM policy")
    with LedgerReader.open(config, checked=False) as ledger:
        assert any(problem.startswith("policy ") for problem in ledger.verify().problems)
    with pytest.raises(AssertionError):
        check(config, told)


@pytest.mark.timeout(3600)
def test_two_processes_at_once_never_fork_the_log(
    fresh: Callable[[int], LedgerConfig], stress_count: Callable[[int, int], int]
) -> None:
    """Two appliances with an anchor each append, sign and change keys; then both are killed at once."""
    config, told = fresh(0), Acknowledged()
    Ledger.create(config).close()
    home, other = config.anchor.parent, config.anchor.parent / "other"
    other.mkdir()
    (other / "signing").symlink_to(home / "signing")
    (other / "anchor").write_bytes(config.anchor.read_bytes())
    wanted = stress_count(12, 300)
    second = replace(config, anchor=other / "anchor", signing_dir=other / "signing")
    seen = ["", ""]
    with living(config, 1, "append", "sign") as one, living(second, 2, "sign", "append", "rotate") as two:
        for number, process in enumerate((one, two)):
            assert process.stdout is not None
            seen[number] = "".join(process.stdout.readline() for _ in range(wanted))
        for number, process in enumerate((one, two)):
            assert process.stdout is not None
            process.kill()
            seen[number] += process.stdout.read()
    for text in seen:
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        assert len(lines) >= wanted
        for line in lines:
            told.take(line.strip())
    assert told.rotations
    check(config, told)
    check(second, told)
    with Ledger.open(second) as ledger, ledger.transaction(Actor("p-1", "")) as tx:
        tx.append(KeyLocked())
    check(config, told)
