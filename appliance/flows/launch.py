"""Workers: launch one on a run directory, follow its journal, collect its result.

A worker gets a minimal environment, no terminal and no standard streams: a library that prints or warns could print
private text, so nothing it prints is kept. What it has to say is in `result.json`, and all of that is public.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

from pydantic import ValidationError

import appliance.errors
from appliance.errors import ApplianceError, ArtefactMissing, Busy, IntegrityError, Interrupted, WillNotFit
from appliance.files import lock
from appliance.isolation import interpreter
from appliance.jobs.job import Failure
from appliance.jobs.pipes import Pipes
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous
from appliance.values import Value, to_json

R = TypeVar("R", bound=Value)
_SECONDS, _BYTES_A_SECOND = 600.0, 2 << 20
_LOOKS, _LOOK_S = 200, 0.01
Watch = Callable[[], None]


KEPT_ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
    "CUDA_VISIBLE_DEVICES",
)
SPINS = "10000"
"""How often a thread of OpenMP looks for work before it sleeps: some 20 µs.

Its own default is a millisecond and more, in which a thread that waits for one that is not on a processor takes the
time of the machine's other work.
"""
GPU_ENVIRONMENT = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""GPUs are numbered as by nvidia-smi. torch's allocator grows its blocks in place: with fixed blocks it would hold up
to 1.4 times of what is live, because sizes follow the lengths of records, and the forecast could not tell how much."""
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""torch keeps a kernel of about 0.6 MiB for every size of bfloat16 product that it has met, 1024 by default, and sizes
follow the lengths of records: a long run would grow by 600 MiB. Making one anew takes about 0.6 ms."""
GPU_CACHES = ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_KERNEL_CACHE_PATH")
"""Compiled kernels: a worker may write nothing in HOME, where they would lie."""


@contextmanager
def supervising(run_dir: RunDir) -> Iterator[None]:
    """Hold the supervisor's lock of a run directory; the file names the holder's process id.

    Workers of a supervisor that was killed are gone when the block begins, so nobody else writes the journal.

    Raises:
      Busy: another process supervises this run.
    """
    descriptor = _lock(run_dir)
    try:
        with run_dir.supervisor_lock.open("r+b", buffering=0) as file:
            file.write(f"{os.getpid():>20}\n".encode())  # whole, over a former one
        wait_for_workers(run_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(run_dir: RunDir) -> int:
    """Lock it, as soon as nobody does who only looks; they share the lock for a moment."""
    for _ in range(_LOOKS):
        with suppress(BlockingIOError):
            return lock(run_dir.supervisor_lock, wait=False)
        if _is_locked(run_dir):
            break
        time.sleep(_LOOK_S)
    raise Busy(f"{run_dir.name} is being supervised by another process")


def _is_locked(run_dir: RunDir) -> bool:
    try:
        os.close(lock(run_dir.supervisor_lock, wait=False, shared=True, make=False))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def supervisor_of(run_dir: RunDir) -> int | None:
    """Process id of the live supervisor of a run directory, or None. Raises `Busy` for one that does not name it."""
    for _ in range(_LOOKS):
        if not _is_locked(run_dir):
            return None
        text = run_dir.supervisor_lock.read_bytes().strip()
        if text.isdigit():
            return int(text)
        time.sleep(_LOOK_S)  # it locks the file, then writes into it
    raise Busy(f"{run_dir.name} is being taken over by another process", hint="try again")


def require_compute() -> None:
    """Refuse where only the control plane is installed: no worker could start.

    Raises:
      ArtefactMissing: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        hint = "on the machine that trains: pip install 'appliance[compute]'"
        raise ArtefactMissing("this installation is a control plane without the packages that compute", hint=hint)


def time_for(*sources: Path) -> float:
    """Allow seconds for a worker on foreign files or directories, by size: ten times of what a slow disk needs."""
    size = 0
    for source in sources:
        with suppress(OSError):  # the worker says what is wrong
            files = source.iterdir() if source.is_dir() else (source,)
            size += sum(path.stat().st_size for path in files)
    return _SECONDS + size / _BYTES_A_SECOND


def run_worker(
    run_dir: RunDir,
    result_type: type[R],
    *,
    watch: Watch = lambda: None,
    poll_s: float = 0.1,
    ranks: int = 1,
    rendezvous: Rendezvous | None = None,
    pipes: Pipes | None = None,
    within_s: float = float("inf"),
) -> R:
    """Run the worker on `run_dir` (which holds `job.json`) until it ends, and return its result.

    Args:
      run_dir: the job's directory.
      result_type: what `result.json` must be.
      watch: called between polls; shows progress, records snapshots.
      poll_s: seconds between polls.
      ranks: how many processes on this machine work on the job together.
      rendezvous: where they meet those on other machines.
      pipes: to a worker that asks for each attempt that it samples (`jobs.permits`), or that answers prompts
        (`jobs.exchange`).
      within_s: seconds after which it is stopped.

    Raises:
      WillNotFit: it took longer than `within_s`.
      ApplianceError: what the worker refused with, under its own class.
      Interrupted: the user interrupted, or the worker was killed.
      IntegrityError: the worker left something that is not a result.
      ArtefactMissing: this installation has no compute plane.
    """
    require_compute()
    run_dir.result.unlink(missing_ok=True)
    process = _spawn(run_dir, ranks, rendezvous, pipes)
    pause = pipes.wait if pipes else time.sleep
    deadline = time.monotonic() + within_s
    try:
        with _interrupts_noted() as noted:
            while process.poll() is None:
                watch()
                pause(poll_s)
                if noted():
                    raise KeyboardInterrupt
                if time.monotonic() > deadline:
                    raise WillNotFit(f"the worker was stopped after {within_s:.0f} s")
            watch()
    except BaseException:
        _stop(process)
        wait_for_workers(run_dir)
        raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise Interrupted(f"the worker was ended by {name}", hint="if memory ran out, the kernel's log says so")
    return _collect(run_dir, result_type)


@contextmanager
def _interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Note the first SIGINT within the block; the function says whether there was one.

    Raised wherever the program happens to be, as Python does it, KeyboardInterrupt can be lost: a finalizer, or a
    callback from C, drops what is raised in it. The second SIGINT is raised, in case that something hangs.
    """
    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield lambda: False
        return
    count = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)


def environment(directory: Path) -> dict[str, str]:
    """Make the environment of a worker in `directory`: little of this process' own, and caches only there."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    scratch = RunDir(directory).tmp
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "BITSANDBYTES_NOWELCOME": "1",
        "GOMP_SPINCOUNT": SPINS,
        "TMPDIR": str(scratch),
        "HF_HOME": str(scratch),
        "APPLIANCE_SUPERVISOR": str(os.getpid()),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without a workspace of its own cuBLAS may not repeat its sums
        "CUDA_MPS_PIPE_DIRECTORY": "/proc/no-mps",  # cannot be made: no daemon outside computes for it
        **{name: str(scratch / name.lower()) for name in GPU_CACHES},
        **KERNEL_CACHES,
        **GPU_ENVIRONMENT,
    }


def _spawn(run_dir: RunDir, ranks: int, rendezvous: Rendezvous | None, pipes: Pipes | None) -> subprocess.Popen[bytes]:
    run_dir.renew(run_dir.tmp)  # compiled kernels of an earlier worker lie there, who may have been taken over
    several = ["appliance.worker.ranks", str(run_dir.path), str(ranks)]
    several += [to_json(rendezvous).decode()] if rendezvous else []
    process = subprocess.Popen(
        interpreter.module(*(several if ranks > 1 or rendezvous else ["appliance.worker", str(run_dir.path)])),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=interpreter.DIRECTORY,
        env=environment(run_dir.path) | (pipes.environment() if pipes else {}),
        close_fds=True,
        pass_fds=pipes.inherited if pipes else (),
    )
    if pipes:
        pipes.hand_over()
    return process


def wait_for_workers(run_dir: RunDir, wait_s: float = 60.0) -> None:
    """Wait until no worker holds the run directory: what dies with its supervisor dies a moment later.

    Raises:
      Busy: one still does after `wait_s` seconds.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return os.close(lock(run_dir.worker_lock, wait=False, make=False))
        except FileNotFoundError:
            return None
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Busy(f"a worker is still on {run_dir.name}") from None
            time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker at once: its journal is write-ahead, so a kill costs at most the step in flight."""
    process.kill()
    process.wait()


def _collect(run_dir: RunDir, result_type: type[R]) -> R:
    try:
        data = run_dir.result.read_bytes()
    except FileNotFoundError:
        raise ApplianceError(f"the worker ended without a result in {run_dir.name}") from None
    try:
        failure = Failure.model_validate_json(data)
    except ValidationError:
        pass
    else:
        raise _as_error(failure)
    try:
        return result_type.model_validate_json(data)
    except ValidationError:
        raise IntegrityError("the worker's result is not what it must be", where=str(run_dir.result)) from None


def _as_error(failure: Failure) -> ApplianceError:
    kind = getattr(appliance.errors, failure.error, ApplianceError)
    if not (isinstance(kind, type) and issubclass(kind, ApplianceError)):
        kind = ApplianceError
    return kind(failure.message, hint=failure.hint, where=failure.where)
