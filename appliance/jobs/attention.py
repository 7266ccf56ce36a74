"""Where a model looks. Prompt, tokens and pictures go through `jobs.exchange`, and stand in no file here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import Result
from appliance.jobs.variants import VariantsJob
from appliance.values import Count, Value


class AttentionJob(VariantsJob):
    """`job.json` of a heatmap; no prompt stands in it.

    Attributes:
      variant: whose attention: base, adapter or marked.
      most_tokens: of the prompt; a longer one is refused.
      orders: random orders of deletion that the attention's order is compared with; 0 for no test.
    """

    kind: Literal["attention"] = "attention"
    variant: Literal["base", "adapter", "marked"]
    most_tokens: Count
    orders: Annotated[int, Field(ge=0)]


class AttentionResult(Result):
    """`result.json` of a heatmap: that it was made."""

    kind: Literal["attention"] = "attention"


class Picture(Value):
    """One heatmap: tokens that look (rows) at tokens (columns), each a byte, the square root of the weight."""

    name: str
    size: Count
    pixels: str


class Faithfulness(Value):
    """What deleting tokens did to the logarithm of the likelihood of the token that had been predicted.

    Each figure is the drop when the most important fifth of the tokens is deleted, in nat.

    Attributes:
      attention: in the order of the attention's roll-up.
      gradient: in the order of gradient times input.
      random: mean of random orders.
      p: one-sided: how rarely a random order does as much as the attention's.
    """

    attention: float
    gradient: float
    random: float
    orders: Count
    p: float


class Heatmap(Value):
    """All that is drawn.

    Attributes:
      tokens: of the prompt, as text.
      predicted: the token that would come next.
      rollup: of all layers; `layers` are means over heads, `heads` single ones at less resolution.
      row_error: by how much a row of weights differed from 1 at most.
      seconds: from the tokens to the pictures, without the test of faithfulness.
    """

    variant: str
    tokens: list[str]
    predicted: str
    rollup: Picture
    layers: list[Picture]
    heads: list[list[Picture]]
    row_error: float
    seconds: float
    faithfulness: Faithfulness | None
