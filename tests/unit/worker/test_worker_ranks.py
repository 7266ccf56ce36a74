"""The launcher of several ranks: what counts of what they leave, and who holds the run directory."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from appliance.errors import Busy
from appliance.flows import launch
from appliance.jobs.job import Failure
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import RankResult
from appliance.values import to_json
from appliance.worker import ranks
from appliance.worker.place import Place


def left(directory: Path, *errors: str | None) -> None:
    """What ranks left: a failure of this class, or a result."""
    run_dir = RunDir(directory)
    run_dir.ranks.mkdir(exist_ok=True)
    for rank, error in enumerate(errors):
        done = RankResult(schema="appliance.rank/1", rank=rank + 1)
        failed = Failure(schema="appliance.failure/1", error=error or "", message="why")
        Place(rank, len(errors)).result(run_dir).write_bytes(to_json(failed if error else done))


def error_of(outcome: bytes) -> str:
    return str(orjson.loads(outcome)["error"])


def test_the_first_rank_speaks_when_all_went_well(tmp_path: Path) -> None:
    left(tmp_path, None, None)
    assert orjson.loads(ranks._outcome(RunDir(tmp_path), [0, 0])) == {"rank": 1, "schema": "appliance.rank/1"}


@pytest.mark.parametrize(
    ("errors", "statuses", "expected"),
    [
        (("Interrupted", "GateFailed"), [1, 1], "GateFailed"),  # what happened, not that the other noticed
        (("WillNotFit", "Interrupted"), [1, -9], "WillNotFit"),
        (("Interrupted", "Interrupted"), [1, 1], "Interrupted"),
        (("Interrupted", None), [1, -9], "Interrupted"),
        ((None, "GateFailed"), [0, 1], "GateFailed"),  # the first was done when another found it wrong
        ((None, None), [0, -9], "Interrupted"),
    ],
)
def test_a_failure_counts_before_the_loss_of_a_rank(
    tmp_path: Path, errors: tuple[str | None, ...], statuses: list[int], expected: str
) -> None:
    left(tmp_path, *errors)
    assert error_of(ranks._outcome(RunDir(tmp_path), statuses)) == expected


def test_ranks_that_left_nothing_were_interrupted(tmp_path: Path) -> None:
    assert error_of(ranks._outcome(RunDir(tmp_path), [-9, -9])) == "Interrupted"
    assert b"SIGKILL" in ranks._outcome(RunDir(tmp_path), [0, -9])


def test_one_killed_rank_ends_the_others(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = [subprocess.Popen(command) for _ in range(3)]
    started[1].kill()
    ranks._wait(started)
    assert [rank.returncode for rank in started] == [-9, -9, -9]


def test_who_supervises_waits_until_no_worker_is_left(tmp_path: Path) -> None:
    with open(tmp_path / "worker.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            pass_fds=(lock.fileno(),), stdin=subprocess.PIPE,
        )  # fmt: skip
    with pytest.raises(Busy, match="still on"):
        launch.wait_for_workers(RunDir(tmp_path), wait_s=0)
    orphan.communicate(b"")
    with launch.supervising(RunDir(tmp_path)):
        assert launch.supervisor_of(RunDir(tmp_path)) == os.getpid()


@pytest.mark.parametrize(("network", "error"), [("required", "IsolationViolated"), ("preferred", "ConfigInvalid")])
def test_a_machine_that_gives_no_namespace_trains_only_if_isolation_is_merely_preferred(
    tmp_path: Path, network: str, error: str
) -> None:
    """The launcher on a machine whose limit of network namespaces is 0; there is no job, so ranks end at once."""
    (tmp_path / "job.json").write_bytes(orjson.dumps({"isolation": {"network": network, "files": "preferred"}}))
    limited = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    launcher = [sys.executable, "-m", "appliance.worker.ranks", str(tmp_path), "2"]
    done = subprocess.run(
        ["unshare", "-r", "sh", "-c", limited, "sh", *launcher],
        env={**os.environ, "APPLIANCE_SUPERVISOR": str(os.getpid())}, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    if not (tmp_path / "result.json").exists():
        pytest.skip(f"not run: this machine allows no user namespaces ({done.stderr!r})")
    assert done.returncode == 1
    assert error_of((tmp_path / "result.json").read_bytes()) == error  # a job that is none is what ranks refuse
