"""Several ranks of one run: `python -m appliance.worker.ranks RUN_DIR COUNT` starts the worker once for each.

This process loads no torch and touches no data. It leaves the network of the host, starts the ranks in a namespace
with only loopback, and waits. With a third argument, a `Rendezvous` as JSON, there are ranks on other machines too:
then it stays in the namespace it is in, which has to lead to them alone. The ranks die with it, as it dies with the
supervisor; when one of them ends badly the others are ended. Every rank inherits the lock of the run directory, so it
is held for as long as any of them lives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from appliance.errors import ApplianceError, Busy, IsolationViolated
from appliance.files import lock, write_atomic
from appliance.isolation import interpreter, loopback, process, tunnel
from appliance.isolation.tunnel import End
from appliance.jobs import permits
from appliance.jobs.job import Failure, IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous
from appliance.values import to_json
from appliance.worker.place import Place

_GRACE_S = 10.0  # for the others to say why they end too
_POLL_S = 0.05


def main() -> None:
    """Run the ranks of one job; what counts of what they left becomes `result.json`. Exits as a single worker does."""
    run_dir, count = RunDir(Path(sys.argv[1])), int(sys.argv[2])
    meets = Rendezvous.model_validate_json(sys.argv[3]) if len(sys.argv) > 3 else None
    supervisor = int(os.environ["APPLIANCE_SUPERVISOR"])
    try:
        end = _isolate(run_dir, meets)
        process.harden(supervisor)
        held = _lock(run_dir)
        run_dir.renew(run_dir.ranks)
        first, size = (meets.first, meets.size) if meets else (0, count)
        declared = end.declared if end else ""
        ranks = [_start(run_dir, Place(first + i, size, i, meets, declared), count, held) for i in range(count)]
        _wait(ranks)
        outcome = _outcome(run_dir, [rank.returncode for rank in ranks], first)
    except ApplianceError as refusal:
        outcome = to_json(_failure(refusal))
    write_atomic(run_dir.result, outcome)
    sys.exit(1 if b"appliance.failure/1" in outcome else 0)


def _isolate(run_dir: RunDir, meets: Rendezvous | None) -> End | None:
    """Enter a namespace with only loopback, or stay in one with only WireGuard; go on without if that is preferred.

    Returns:
      This machine's end of the tunnel, if there is one; found before whose files are whose can no longer be seen.
    """
    end = End(meets.here) if meets else None
    try:
        if meets is None:
            loopback.enter()
            return None
        end = tunnel.here(meets.here)
        loopback.confine()
        tunnel.require(end)
    except IsolationViolated:
        job: dict[str, Any] = orjson.loads(run_dir.job.read_bytes())
        if IsolationSpec.model_validate(job["isolation"]).network == "required":
            raise
    return end


def _lock(run_dir: RunDir) -> int:
    try:
        return lock(run_dir.worker_lock, wait=False)
    except BlockingIOError:
        raise Busy("another worker is on this run directory") from None


def _start(run_dir: RunDir, place: Place, count: int, held: int) -> subprocess.Popen[bytes]:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local),
        "WORLD_SIZE": str(place.size),
        "APPLIANCE_SUPERVISOR": str(os.getpid()),
        "APPLIANCE_LOCK": str(held),
        "APPLIANCE_LINK": place.declared,
    }
    if place.rendezvous:
        environment["APPLIANCE_RENDEZVOUS"] = to_json(place.rendezvous).decode()
    return subprocess.Popen(
        interpreter.module("appliance.worker", str(run_dir.path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=interpreter.DIRECTORY,
        env=environment,
        pass_fds=(held, *(permits.descriptors() if place.main else ())),
    )


def _wait(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended; once one has ended badly the others get a moment and are then killed."""
    deadline: float | None = None
    while None in (statuses := [rank.poll() for rank in ranks]):  # a list: every one of them is looked at
        if deadline is None and any(statuses):
            deadline = time.monotonic() + (0 if any(status and status < 0 for status in statuses) else _GRACE_S)
        if deadline is not None and time.monotonic() >= deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(_POLL_S)


def _outcome(run_dir: RunDir, statuses: list[int], first: int = 0) -> bytes:
    """Find what the first rank left if all went well, else the failure that is not merely the loss of another rank."""
    left = [_read_outcome(run_dir, first + i) for i in range(len(statuses))]
    if not any(statuses) and left[0]:
        return left[0]
    failures = [data for data in left if b"appliance.failure/1" in data]
    own = [data for data in failures if orjson.loads(data)["error"] != "Interrupted"]
    if own or (failures and not any(status < 0 for status in statuses)):
        return (own or failures)[0]
    ended = next((status for status in statuses if status < 0), None)
    name = signal.Signals(-ended).name if ended else "another cause"
    hint = "if memory ran out, the kernel's log says so"
    return to_json(Failure(error="Interrupted", message=f"a rank was ended by {name}", hint=hint))


def _read_outcome(run_dir: RunDir, rank: int) -> bytes:
    try:
        return (run_dir.ranks / f"{rank}.json").read_bytes()
    except FileNotFoundError:
        return b""


def _failure(refusal: ApplianceError) -> Failure:
    return Failure(
        error=type(refusal).__name__,
        message=refusal.message,
        hint=refusal.hint,
        where=refusal.where,
    )


if __name__ == "__main__":
    main()
