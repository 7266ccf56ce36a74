"""The run directory: only the job that was reserved is read from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from appliance.errors import IntegrityError
from appliance.jobs.account import AccountJob
from appliance.jobs.job import IsolationSpec
from appliance.jobs.model_import import ImportJob
from appliance.jobs.rundir import RunDir

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
