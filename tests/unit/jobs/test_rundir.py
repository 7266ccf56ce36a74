"""The run directory: only the job that was reserved is read from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from appliance.errors import IntegrityError
from appliance.jobs.account import AccountJob
from appliance.jobs.job import IsolationSpec
from appliance.jobs.model_import import ImportJob
from appliance.jobs.rundir import SNAPSHOT, SNAPSHOT_EVERY, RunDir, release_name

JOB = ImportJob(run_id="import_1", source="/a", output_dir="/b", isolation=IsolationSpec())


def test_the_reserved_job_is_read(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    digest = run_dir.write_job(JOB)
    assert digest == hashlib.sha256((tmp_path / "job.json").read_bytes()).hexdigest()
    assert run_dir.holds_job(digest)
    assert run_dir.reserved_job(ImportJob, digest) == JOB


def test_another_job_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    digest = run_dir.write_job(JOB)
    run_dir.write_job(JOB.model_copy(update={"source": "/c"}))
    assert not run_dir.holds_job(digest)
    with pytest.raises(IntegrityError, match="not the one that was reserved"):
        run_dir.reserved_job(ImportJob, digest)


def test_a_lost_or_damaged_job_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    digest = run_dir.write_job(JOB)
    with pytest.raises(IntegrityError, match="gone or damaged"):
        run_dir.reserved_job(AccountJob, digest)
    run_dir.job.unlink()
    assert not run_dir.holds_job(digest)
    with pytest.raises(IntegrityError, match="gone or damaged"):
        run_dir.reserved_job(ImportJob, digest)


@pytest.mark.parametrize("run_id", ["../x", "/x", "", "a" * 65, "a\n"])
def test_an_id_is_no_path(run_id: str) -> None:
    with pytest.raises(ValueError, match="run_id"):
        ImportJob(run_id=run_id, source="/a", output_dir="/b", isolation=IsolationSpec())


def test_steps_are_proven_by_what_they_left(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.proven_steps(37) == 0
    run_dir.snapshots.mkdir()
    for name in ("release-1", "release-000099.tmp", "snapshot.tmp", "x"):
        (run_dir.snapshots / name).touch()
    assert run_dir.proven_steps(37) == 0
    (run_dir.snapshots / SNAPSHOT).touch()
    assert run_dir.proven_steps(37) == SNAPSHOT_EVERY
    assert run_dir.proven_steps(3) == 3  # the last step is one, however few there are
    for step in (12, 11):
        (run_dir.snapshots / release_name(step)).touch()
    assert run_dir.proven_steps(37) == 12
    run_dir.adapter.mkdir()
    assert run_dir.proven_steps(37) == 37
