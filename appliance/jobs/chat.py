"""Trying a model by hand. The job says what is opened; what is asked and answered goes through `jobs.exchange`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import Result
from appliance.jobs.variants import VariantsJob
from appliance.values import Count


class ChatJob(VariantsJob):
    """`job.json` of a chat; no prompt stands in it.

    Attributes:
      temperature: 0 always takes the likeliest token.
    """

    kind: Literal["chat"] = "chat"
    most_tokens: Count
    temperature: Annotated[float, Field(ge=0, le=10)]


class ChatResult(Result):
    """`result.json` of a chat that ended: nothing of what was said."""

    kind: Literal["chat"] = "chat"
