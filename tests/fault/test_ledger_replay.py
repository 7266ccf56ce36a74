"""Power loss: every prefix of what a ledger wrote, with the writes that were not synced lost in part or in whole.

A real process appends, signs, changes keys, erases and closes under strace. After each of its writes the disk is made
as it would be if the power failed then, and the ledger in it opened as usual.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.ledger.ledger import Ledger, LedgerConfig
from tests.fault.disk import TRACED, Disk, calls, chooser
from tests.fault.ledger_writer import ACTOR, configuration
from tests.fault.test_ledger_crash import REPOSITORY, Acknowledged, check

PROGRAM = """
import sys
from pathlib import Path
from appliance.ledger.ledger import Ledger
from tests.fault.ledger_writer import Uses, configuration
home = Path(sys.argv[1])
with Ledger.open(configuration(home, f"sqlite:///{home / 'ledger.db'}")) as ledger:
    uses = Uses(ledger, home, int(sys.argv[2]))
    for name in sys.argv[3:]:
        getattr(uses, name)()
"""


def config_in(home: Path) -> LedgerConfig:
    return configuration(home, f"sqlite:///{home / 'ledger.db'}")


def traced(home: Path, log: Path, *uses: str) -> str:
    command = ["strace", "-y", "-xx", "-s", "1000000", "-e", TRACED, "-o", str(log)]
    command += [sys.executable, "-c", PROGRAM, str(home), "1", *uses]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    except FileNotFoundError:
        pytest.skip("not run: strace is not installed (apt install strace)")
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("not run: strace may not trace here")
    assert done.returncode == 0, done.stderr
    return log.read_text()


def make(directory: Path, state: dict[Path, bytes]) -> LedgerConfig:
    shutil.rmtree(directory, ignore_errors=True)
    for path, data in state.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return config_in(directory)


def survives(config: LedgerConfig, told: Acknowledged) -> None:
    """The ledger opens, has what was acknowledged, goes on, and still holds."""
    with Ledger.open(config) as ledger, ledger.transaction(ACTOR) as tx:
        tx.append("key.locked", {})
    check(config, told)


@pytest.mark.timeout(3600)
def test_no_loss_of_power_loses_what_was_acknowledged(tmp_path: Path, stress_count: Callable[[int, int], int]) -> None:
    home, again = tmp_path / "home", tmp_path / "again"
    home.mkdir()
    Ledger.create(config_in(home)).close()
    disk, told, said = Disk(home), Acknowledged(), ""
    steps = list(calls(traced(home, tmp_path / "trace", "append", "sign", "rotate", "erase", "append"), home))
    generator = random.Random(11)
    chosen = {*generator.sample(range(len(steps)), min(len(steps), stress_count(24, len(steps))))}
    tried = 0
    for number, (call, arguments) in enumerate(steps):
        if call == "say":
            said += arguments[0]
            while "\n" in said:
                line, _, said = said.partition("\n")
                told.take(line)
            continue
        disk.apply(call, arguments)
        for chance in (0.0, 1.0, 0.5, 0.5) if number in chosen else ():
            survives(make(again, disk.state(chooser(generator, chance))), told)
            tried += 1
    assert len(told.rows) == 4
    assert (len(told.heads), told.erased) == (2, {max(told.erased)})
    assert tried > 50
    print(f"{tried} states after {len(steps)} calls")


def test_a_lost_sync_is_noticed(tmp_path: Path) -> None:
    """The same replay finds a ledger that acknowledges before it syncs."""
    home, again = tmp_path / "home", tmp_path / "again"
    home.mkdir()
    Ledger.create(config_in(home)).close()
    disk, told = Disk(home), Acknowledged()
    steps = list(calls(traced(home, tmp_path / "trace", "append", "sign"), home))
    lost = [step for step in steps if step[0] not in ("fsync", "fdatasync")]
    assert len(lost) < len(steps)
    for call, arguments in lost:
        if call != "say":
            disk.apply(call, arguments)
    text = "".join(arguments[0] for call, arguments in steps if call == "say")
    for line in text.splitlines():
        told.take(line)
    with pytest.raises((AssertionError, ApplianceError)):
        survives(make(again, disk.state(lambda: False)), told)
