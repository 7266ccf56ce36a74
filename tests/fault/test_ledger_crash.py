"""kill -9 of a process that appends, or of the server under it: what was acknowledged is there, rows and leaves agree,
nothing needs repair.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger, LedgerConfig
from tests import postgres
from tests.databases import KINDS, Behind, PostgresDatabase, SQLiteFile, attack

# Adds a policy row with its event, acknowledges it on standard output, signs now and then and acknowledges that too.
WRITER = """
import sys
from pathlib import Path
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger, LedgerConfig
from appliance.ledger.rows import PolicyRow
home = Path(sys.argv[1])
places = home / "signing", home / "anchor", bytes([9] + [0] * 31)
config = LedgerConfig(sys.argv[3], "hospital.example/appliance", *places)
ledger = Ledger.open(config)
print("ready", flush=True)
for i in range(int(sys.argv[2]), 10**6):
    digest = f"{i:064d}"
    with ledger.transaction(Actor("p-1", "Ann"), reason="crash") as tx:
        tx.policies.add(PolicyRow(sha256=digest, name="n", text="x" * 300, state="active"))
        index = tx.append("policy.activated", {"name": "n", "sha256": digest})
    print("row", i, index, flush=True)
    if i % 3 == 0:
        print("signed", ledger.sign().size, 0, flush=True)
"""


def configuration(home: Path, behind: Behind) -> LedgerConfig:
    return LedgerConfig(
        **behind.urls,
        origin="hospital.example/appliance",
        signing_dir=home / "signing",
        anchor=home / "anchor",
        body_public_key=bytes([9] + [0] * 31),
    )


def killed_after(
    config: LedgerConfig, start: int, delay: float, crash: Callable[[], None] = lambda: None
) -> list[list[str]]:
    """Run the writer, `crash` and kill it `delay` seconds after it is ready, and return what it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(config.anchor.parent), str(start), config.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        crash()
        process.kill()
        out = process.stdout.read()
    return [line.split() for line in out.splitlines() if line.count(" ") == 2]


def live_and_die(config: LedgerConfig, lives: int, crash: Callable[[], None] = lambda: None) -> None:
    """Kill the writer so often; after each time compare what is there with what was acknowledged."""
    chooser = random.Random(4)
    rows: dict[int, int] = {}
    signed = 1
    for life in range(lives):
        # Numbers of its own for each life: a row may be in without having been acknowledged.
        for kind, first, second in killed_after(config, 10_000 * life, chooser.uniform(0, 0.3), crash):
            if kind == "row":
                rows[int(first)] = int(second)
            else:
                signed = max(signed, int(first))
        with Ledger.open(config, writable=False) as ledger:
            found = ledger.verify()
            assert found.problems == ()
            assert found.signed_size >= signed
            present = {leaf.leaf["facts"]["sha256"]: leaf.index for leaf in ledger.entries(type="policy.activated")}
            with ledger.read() as catalog:
                stored = {row.sha256 for row in catalog.policies.list()}
        assert stored == present.keys()
        assert {f"{number:064d}": index for number, index in rows.items()}.items() <= present.items()
    assert len(rows) > 10
    with Ledger.open(config) as ledger, ledger.transaction(Actor("p-1", "")) as tx:
        tx.append("key.locked", {})
    with Ledger.open(config) as ledger:
        assert ledger.verify().ok


@pytest.fixture(params=KINDS)
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Behind:
    if request.param == "postgres":
        database: Behind = request.getfixturevalue("postgres_database")
        return database
    return SQLiteFile(tmp_path / "ledger.db")


@pytest.mark.timeout(3600)  # the full count on a busy machine
def test_killed_at_random_nothing_acknowledged_is_lost(
    tmp_path: Path, behind: Behind, stress_count: Callable[[int, int], int]
) -> None:
    config = configuration(tmp_path, behind)
    Ledger.create(config).close()
    live_and_die(config, stress_count(6, 500))


@pytest.mark.timeout(3600)
def test_a_server_killed_at_random_loses_nothing_acknowledged(
    tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    """All processes of a server of its own get SIGKILL at once; it then recovers by itself when it is started."""
    try:
        server = postgres.make()
    except postgres.Unavailable as reason:
        pytest.skip(str(reason))
    try:
        server.create("crash")
        config = configuration(tmp_path, PostgresDatabase(server, "crash"))
        Ledger.create(config).close()

        def crash() -> None:
            server.kill()
            server.start()

        live_and_die(config, stress_count(3, 500), crash)
    finally:
        postgres.remove(server)


def test_the_check_above_can_fail(tmp_path: Path, behind: Behind) -> None:
    """The same comparison notices a row that lost its leaf."""
    config = configuration(tmp_path, behind)
    Ledger.create(config).close()
    assert any(killed_after(config, 10_000 * life, 0.5) for life in range(5))
    attack(behind, "DELETE FROM policy")
    with Ledger.open(config, writable=False, checked=False) as ledger:
        assert any(problem.startswith("policy ") for problem in ledger.verify().problems)
