"""The run directory: one directory for one job, what its files are called, and whether its job is the reserved one.

job.json            what the worker is asked to do; of a run its digest stands in the ledger
evidence.json       the signed entry, with its proof, for which the key agent releases a key
result.json         what the worker answers: a result or a failure
journal.jsonl       attempts of a training run, written before each
adapter/            the trained adapter; released/ is the marked one, the only one that may leave
escrow.sealed       reference of the mark; watermark_certificate.json states the mark, detections/ later searches
benchmarks/         scores of single items of public benchmarks
snapshots/          sealed training state
selftest/           run directory of the run's self-test; proof.json is what it proved of row counts
ranks/              what each of several ranks leaves, and where they meet
tickets/            for the other machines of a start; ticket.json is what one of them was given
tmp/                the worker's temporary files and compiled kernels, made anew for each start
worker.lock         held by the worker, supervisor.lock by who started it; supervisor.log is of a detached one
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from appliance.errors import IntegrityError, IsolationViolated
from appliance.files import write_atomic
from appliance.jobs.job import Job
from appliance.jobs.selftest import ShapeProof
from appliance.values import to_json

J = TypeVar("J", bound=Job)
CERTIFICATE = "watermark_certificate.json"

SNAPSHOT, SNAPSHOT_EVERY = "snapshot", 10
"""Name of the training state in `snapshots`, and after how many steps it is written; and after the last."""
_RELEASE = re.compile(r"release-([0-9]{6,9})", re.ASCII)


def release_name(step: int) -> str:
    """Name the file in `snapshots` in which the noised sum of a step is kept."""
    return f"release-{step:06d}"


@dataclass(frozen=True, slots=True)
class RunDir:
    """The directory of one job."""

    path: Path

    @property
    def name(self) -> str:
        """Its name, which is the id of what it is for."""
        return self.path.name

    @property
    def job(self) -> Path:
        """What the worker is asked to do."""
        return self.path / "job.json"

    @property
    def evidence(self) -> Path:
        """For which the key agent releases a key."""
        return self.path / "evidence.json"

    @property
    def result(self) -> Path:
        """What the worker answers."""
        return self.path / "result.json"

    @property
    def journal(self) -> Path:
        """Attempts of a training run."""
        return self.path / "journal.jsonl"

    @property
    def adapter(self) -> Path:
        """Directory of the trained adapter."""
        return self.path / "adapter"

    @property
    def released(self) -> Path:
        """Directory of the marked adapter."""
        return self.path / "released"

    @property
    def certificate(self) -> Path:
        """What states the mark."""
        return self.path / CERTIFICATE

    @property
    def escrow(self) -> Path:
        """The sealed reference of the mark."""
        return self.path / "escrow.sealed"

    @property
    def detections(self) -> Path:
        """Directory of certificates of later searches."""
        return self.path / "detections"

    @property
    def benchmarks(self) -> Path:
        """Directory of scores on public benchmarks."""
        return self.path / "benchmarks"

    @property
    def snapshots(self) -> Path:
        """Directory of sealed training state."""
        return self.path / "snapshots"

    @property
    def selftest(self) -> RunDir:
        """Run directory of the run's self-test."""
        return RunDir(self.path / "selftest")

    @property
    def proof(self) -> Path:
        """Row counts that an earlier self-test proved, written before each start from the ledger."""
        return self.path / "proof.json"

    def read_proof(self) -> ShapeProof | None:
        """Read them; None where there are none, or they are damaged: then they are proved again."""
        try:
            return ShapeProof.model_validate_json(self.proof.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    @property
    def ranks(self) -> Path:
        """Directory of what the ranks of one machine leave."""
        return self.path / "ranks"

    @property
    def tickets(self) -> Path:
        """Directory of the tickets of a start."""
        return self.path / "tickets"

    @property
    def ticket(self) -> Path:
        """The ticket with which a node takes part."""
        return self.path / "ticket.json"

    @property
    def tmp(self) -> Path:
        """Directory of the worker's temporary files."""
        return self.path / "tmp"

    @property
    def worker_lock(self) -> Path:
        """Held by the worker, or by the ranks together."""
        return self.path / "worker.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the process that started the worker; names it."""
        return self.path / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        """What a detached supervisor says."""
        return self.path / "supervisor.log"

    def proven_steps(self, steps: int) -> int:
        """Say how many of so many planned steps are proven by what they left: adapter, training state, noised sums."""
        if self.adapter.exists():
            return steps
        names = os.listdir(self.snapshots) if self.snapshots.is_dir() else []
        found = [int(match[1]) for match in map(_RELEASE.fullmatch, names) if match]
        return max([*found, min(SNAPSHOT_EVERY, steps) if SNAPSHOT in names else 0])

    def write_job(self, job: Job) -> str:
        """Write `job.json`; its SHA-256 (hex)."""
        data = to_json(job)
        write_atomic(self.job, data)
        return hashlib.sha256(data).hexdigest()

    def holds_job(self, sha256: str) -> bool:
        """Tell whether `job.json` is there and has this digest."""
        try:
            return hashlib.sha256(self.job.read_bytes()).hexdigest() == sha256
        except FileNotFoundError:
            return False

    def reserved_job(self, kind: type[J], sha256: str) -> J:
        """Read `job.json`, which must be the one that was reserved.

        Args:
          kind: what it must be.
          sha256: its digest, as the ledger has it.

        Raises:
          IntegrityError: it is another one, is gone or is damaged.
        """
        try:
            data = self.job.read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise IntegrityError("the job is not the one that was reserved", where=str(self.job))
            return kind.model_validate_json(data)
        except (FileNotFoundError, ValidationError):
            raise IntegrityError("the job of the run is gone or damaged", where=str(self.job)) from None

    def renew(self, directory: Path) -> None:
        """Make a directory below it anew and empty: what an earlier process left there, nobody reads again.

        Raises:
          IsolationViolated: it cannot be removed.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory) if stat.S_ISDIR(directory.lstat().st_mode) else directory.unlink()
            directory.mkdir(mode=0o700)
        except OSError as error:
            reason = f"what an earlier start left cannot be removed: {error.strerror}"
            raise IsolationViolated(reason, hint="remove it by hand", where=str(directory)) from None

    def clear(self, *directories: Path) -> None:
        """Remove directories below it that have served."""
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
