"""A settlement without a result: what both accountants say of so many attempts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import Job
from appliance.jobs.plan import PrivacyPlan
from appliance.values import Value


class AccountJob(Job):
    """`job.json` of a settlement without a result: what do both accountants say of so many attempts?"""

    kind: Literal["account"] = "account"
    plan: PrivacyPlan
    attempts: Annotated[int, Field(ge=0)]


class PrivacySpent(Value):
    """What an accountant says of `attempts` steps, epsilon rounded up."""

    attempts: Annotated[int, Field(ge=0)]
    epsilon_pld: float
    epsilon_prv: float
    epsilon_rdp: float
    delta: float
