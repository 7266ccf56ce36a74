"""Power loss: every prefix of what a ledger wrote, with the writes that were not synced lost in part or in whole.

A real process appends, signs, changes keys, erases, exports and closes under strace. After each of its writes the disk
is made as it would be if the power failed then, and the ledger in it opened as usual.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.events.key import KeyLocked
from appliance.ledger.config import LedgerConfig
from appliance.ledger.ledger import Ledger
from tests.fault.disk import Disk, chooser
from tests.fault.ledger_writer import ACTOR, configuration
from tests.fault.test_ledger_crash import REPOSITORY, Acknowledged, check
from tests.fault.trace import STRACE, Step, steps

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


def traced(log: Path, program: str, *arguments: str) -> str:
    """Run a program under strace and return what it did."""
    command = [*STRACE, "-o", str(log), sys.executable, "-c", program, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    except FileNotFoundError:
        pytest.skip("not run: strace is not installed (apt install strace)")
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("not run: strace may not trace here")
    assert done.returncode == 0, done.stderr
    return log.read_text()


def make(directory: Path, state: dict[Path, bytes | None]) -> None:
    """Put what a disk holds into a directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path, data in state.items():
        if data is None:
            (directory / path).mkdir()
        else:
            (directory / path).write_bytes(data)


def replay(
    done: Iterable[Step],
    disk: Disk,
    points: Container[int],
    survive: Callable[[dict[Path, bytes | None], Acknowledged], None],
    chances: Sequence[float] = (0.0, 1.0, 0.5, 0.5),
) -> tuple[Acknowledged, int]:
    """Do again what was done; let the power fail after the calls with these numbers, and look at each disk there is.

    Returns what was acknowledged in the end, and the number of disks looked at.
    """
    generator, told, said, number, tried = random.Random(12), Acknowledged(), "", 0, 0
    for step in done:
        if step.kind == "say":
            *lines, said = (said + step.text).split("\n")
            for line in lines:
                told.take(line)
            continue
        disk.apply(step)
        if step.kind == "sync began":
            continue
        number += 1
        for chance in chances if number in points else ():
            survive(disk.state(chooser(generator, chance)), told)
            tried += 1
    return told, tried


def calls(done: Iterable[Step]) -> int:
    """How many of these steps are whole system calls on files."""
    return sum(step.kind not in ("say", "sync began") for step in done)


def survives(config: LedgerConfig, told: Acknowledged) -> None:
    """The ledger opens, has what was acknowledged, goes on, and still holds."""
    with Ledger.open(config) as ledger, ledger.transaction(ACTOR) as tx:
        tx.append(KeyLocked())
    check(config, told)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of a new ledger."""
    directory = tmp_path / "home"
    directory.mkdir()
    Ledger.create(config_in(directory)).close()
    return directory


def did(home: Path, *uses: str) -> list[Step]:
    return list(steps(traced(home.parent / "trace", PROGRAM, str(home), "1", *uses), home, Path("/")))


@pytest.mark.timeout(3600)
def test_no_loss_of_power_loses_what_was_acknowledged(home: Path, stress_count: Callable[[int, int], int]) -> None:
    disk, again = Disk(home), home.with_name("again")
    done = did(home, "append", "sign", "rotate", "erase", "export", "append")
    number = calls(done)
    points = {*random.Random(11).sample(range(1, number + 1), min(number, stress_count(24, number)))}

    def survive(state: dict[Path, bytes | None], told: Acknowledged) -> None:
        make(again, state)
        survives(config_in(again), told)

    told, tried = replay(done, disk, points, survive)
    assert len(told.rows) == 5
    assert (len(told.heads), told.erased, len(told.exported)) == (2, {max(told.erased)}, 1)
    assert tried > 50
    print(f"{tried} states after {len(points)} of {number} calls")


def test_a_lost_sync_is_noticed(home: Path) -> None:
    """The same replay finds a ledger that acknowledges before it syncs."""
    disk, again = Disk(home), home.with_name("again")
    done = did(home, "append", "sign")
    lost = [step for step in done if not step.kind.startswith("sync")]
    assert len(lost) < len(done)
    told, _ = replay(lost, disk, (), lambda *_: None)
    make(again, disk.state(lambda: False))
    with pytest.raises((AssertionError, ApplianceError)):
        survives(config_in(again), told)


def test_a_name_that_was_not_synced_is_noticed(home: Path) -> None:
    """And one that syncs files, but not the directories that they are in."""
    disk, again = Disk(home), home.with_name("again")
    done = did(home, "export")
    told, _ = replay((step for step in done if not names_synced(step)), disk, (), lambda *_: None)
    make(again, disk.state(lambda: False))
    with pytest.raises((AssertionError, ApplianceError)):
        survives(config_in(again), told)


def names_synced(step: Step) -> bool:
    return step.kind.startswith("sync") and step.path.is_dir()
