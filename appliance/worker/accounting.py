"""A settlement without a result: what both accountants say of so many attempts."""

from __future__ import annotations

from pathlib import Path

from appliance.records import AccountJob, IsolationSpec, PrivacySpent
from appliance.worker import sandboxed


def run(job: AccountJob, run_dir: Path) -> PrivacySpent:
    """Account `job.attempts` attempts of the plan."""
    sandboxed.enter(IsolationSpec(), run_dir)
    from appliance.train.accounting import spent

    return spent(job.plan, job.attempts)
