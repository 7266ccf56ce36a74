"""`train start --nproc`: several processes, one run. Killed and resumed, also with another number of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.isolation import landlock
from appliance.isolation.sandbox import LOOPBACK_ONLY
from tests.e2e.conftest import Appliance, rewrite
from tests.fault.test_train_crash import facts, gone, until

STEPS = 300


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def ranks_of(supervisor: int) -> dict[int, int]:
    """Rank to process id, of the ranks that the supervisor's launcher has started."""
    found = {}
    for pid in (rank for launcher in children(supervisor) for rank in children(launcher)):
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # hardened: its memory is closed, its number in the order of starts is not
            words = []
        number = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), len(found))
        found[number] = pid
    return found


def namespaces() -> bool:
    script = "from appliance.isolation import loopback; loopback.enter()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


class Life:
    """One life of the run: its supervisor, and its ranks once there are `count` of them."""

    def __init__(self, appliance: Appliance, *words: str) -> None:
        self.appliance = appliance
        self.process = appliance.popen("--json", *words)

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def working(self, count: int, at_least: int) -> list[int]:
        """Wait until `count` ranks are there and the journal holds so many attempts; the pids of the ranks."""

        def ready() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1]
            return len(ranks_of(self.process.pid)) == count and attempts(self.appliance) >= at_least

        until(ready, f"{count} ranks work")
        return [pid for _, pid in sorted(ranks_of(self.process.pid).items())]

    def close(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=600)
        assert "Traceback" not in err, err
        return self.process.returncode, err


def attempts(appliance: Appliance) -> int:
    """Attempts that were journaled before they were made."""
    return lines_of(appliance, "attempt")


def lines_of(appliance: Appliance, kind: str) -> int:
    journals = appliance.home.glob("runs/run_*/journal.jsonl")
    return sum(path.read_bytes().count(f'"type":"{kind}"'.encode()) for path in journals)


@pytest.fixture
def many_steps(small_run: Path, tmp_path: Path) -> Path:
    return rewrite(small_run, tmp_path / "many.yaml", steps=STEPS, expected_batch_size=6, spare_steps=11)


@pytest.mark.skipif(not namespaces(), reason="not run: this machine allows no user and network namespaces")
@pytest.mark.timeout(1800)  # ten processes that load torch
def test_ranks_that_are_killed_or_interrupted_are_resumed_by_any_number(appliance: Appliance, many_steps: Path) -> None:
    with Life(appliance, "train", "start", str(many_steps), "--nproc", "2") as life:
        ranks = life.working(2, 3)
        os.kill(ranks[1], signal.SIGKILL)
        status, err = life.close()
        assert status == 130, err
        assert "the reservation stands" in err
        assert all(gone(pid) for pid in ranks)
    made = attempts(appliance)
    (run,) = (row["run"] for row in appliance.json("train", "status")["runs"])

    with Life(appliance, "train", "resume", run, "--nproc", "3") as life:
        ranks = life.working(3, made + 1)
        life.process.kill()
        until(lambda: all(gone(pid) for pid in ranks), "the ranks die with the supervisor")

    made = attempts(appliance)
    with Life(appliance, "train", "resume", run) as life:  # with as many as it was started with
        ranks = life.working(2, made + 1)
        life.process.send_signal(signal.SIGINT)
        status, err = life.close()
        assert status == 130, err
        assert all(gone(pid) for pid in ranks)

    done = appliance.json("train", "resume", run, "--nproc", "2")
    assert done["state"] == "finished"
    assert STEPS <= done["charged_attempts"] <= done["reserved_attempts"]
    missed = lines_of(appliance, "torn")  # by the resume after the kill of the supervisor: they may have been made
    assert missed <= done["reserved_attempts"] // 50
    assert done["charged_attempts"] == attempts(appliance) + missed
    assert [fact["ranks"] for kind in ("run.started", "run.resumed") for fact in facts(appliance, kind)] == [2, 3, 2, 2]
    (settled,) = facts(appliance, "run.settled")
    assert settled["isolation"]["network"] == LOOPBACK_ONLY
    assert settled["isolation"]["files"].startswith("restricted" if landlock.abi() else "not")
    assert not (appliance.home / "runs" / run / "ranks").exists()
    appliance("ledger", "verify")
