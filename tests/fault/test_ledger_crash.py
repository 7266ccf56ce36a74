"""kill -9 of a process that appends: what it acknowledged is there, rows and leaves agree, nothing needs repair."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger, LedgerConfig

# Adds a policy row with its event, acknowledges it on standard output, signs now and then and acknowledges that too.
WRITER = """
import sys
from pathlib import Path
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger, LedgerConfig
from appliance.ledger.rows import PolicyRow
home = Path(sys.argv[1])
url, origin = f"sqlite:///{home}/ledger.db", "hospital.example/appliance"
config = LedgerConfig(url, origin, home / "signing", home / "anchor", bytes([9] + [0] * 31))
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


def configuration(home: Path) -> LedgerConfig:
    return LedgerConfig(
        url=f"sqlite:///{home / 'ledger.db'}",
        origin="hospital.example/appliance",
        signing_dir=home / "signing",
        anchor=home / "anchor",
        body_public_key=bytes([9] + [0] * 31),
    )


def killed_after(home: Path, start: int, delay: float) -> list[list[str]]:
    """Run the writer, kill it `delay` seconds after it is ready, and return what it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(home), str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        out = process.stdout.read()
    return [line.split() for line in out.splitlines() if line.count(" ") == 2]


@pytest.mark.timeout(3600)  # the full count on a busy machine
def test_killed_at_random_nothing_acknowledged_is_lost(tmp_path: Path, stress_count: Callable[[int, int], int]) -> None:
    Ledger.create(configuration(tmp_path)).close()
    chooser = random.Random(4)
    rows: dict[int, int] = {}
    signed = 1
    for life in range(stress_count(8, 500)):
        # Numbers of its own for each life: a row may be in without having been acknowledged.
        for kind, first, second in killed_after(tmp_path, 10_000 * life, chooser.uniform(0, 0.3)):
            if kind == "row":
                rows[int(first)] = int(second)
            else:
                signed = max(signed, int(first))
        with Ledger.open(configuration(tmp_path), writable=False) as ledger:
            found = ledger.verify()
            assert found.problems == ()
            assert found.signed_size >= signed
            present = {leaf.leaf["facts"]["sha256"]: leaf.index for leaf in ledger.entries(type="policy.activated")}
            with ledger.read() as catalog:
                stored = {row.sha256 for row in catalog.policies.list()}
        assert stored == present.keys()
        assert {f"{number:064d}": index for number, index in rows.items()}.items() <= present.items()
    assert len(rows) > 10
    with Ledger.open(configuration(tmp_path)) as ledger, ledger.transaction(Actor("p-1", "")) as tx:
        tx.append("key.locked", {})
    with Ledger.open(configuration(tmp_path)) as ledger:
        assert ledger.verify().ok


def test_the_check_above_can_fail(tmp_path: Path) -> None:
    """The same comparison notices a row that lost its leaf."""
    Ledger.create(configuration(tmp_path)).close()
    assert any(killed_after(tmp_path, 10_000 * life, 0.5) for life in range(5))
    raw = sqlite3.connect(tmp_path / "ledger.db")
    raw.execute("DROP TRIGGER policy_delete")
    raw.execute("DELETE FROM policy")
    raw.commit()
    raw.close()
    with Ledger.open(configuration(tmp_path), writable=False, checked=False) as ledger:
        assert any(problem.startswith("policy ") for problem in ledger.verify().problems)
