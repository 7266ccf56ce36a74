"""A settlement without a result: what both accountants say of so many attempts."""

from __future__ import annotations

from appliance.jobs.account import AccountJob, PrivacySpent
from appliance.jobs.job import IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.worker import confinement

JOB = AccountJob


def run(job: AccountJob, run_dir: RunDir) -> PrivacySpent:
    """Account `job.attempts` attempts of the plan."""
    confinement.enter(IsolationSpec(), run_dir)
    from appliance.train.accounting import spent

    return spent(job.plan, job.attempts)
