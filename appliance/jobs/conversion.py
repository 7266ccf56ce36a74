"""A run's model in one piece: the adapter merged into its base, in full precision or quantised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import Result
from appliance.jobs.variants import VariantsJob
from appliance.values import Count, Digest, Value

Format = Literal["merged", "int8", "nf4", "gguf-q8_0", "gguf-q4_1", "gguf-q4_0"]
"""Safetensors in the base's precision; safetensors of bitsandbytes; a GGUF file for llama.cpp."""


class ConvertJob(VariantsJob):
    """`job.json` of a conversion: the marked adapter is merged, no other.

    Attributes:
      name: of the run, which a GGUF file states.
      predictions: next-token predictions on public text by which it is compared; 0 for none.
    """

    kind: Literal["convert"] = "convert"
    format: Format
    name: str
    licence: str
    output_dir: str
    predictions: Annotated[int, Field(ge=0)]


class Comparison(Value):
    """What a conversion changed, on public text. Shares are in percent, losses in nat per token, as decimal text.

    Attributes:
      against: what it is compared with: adapter beside its base for a merged model, the merged model for the others.
      change: of the share of predictions that are right, in percentage points; `low` and `high` bound it at 95 %.
      agreement: share of predictions that are the same.
    """

    against: str
    predictions: Count
    text_sha256: Digest
    accuracy_before: str
    accuracy_after: str
    change: str
    low: str
    high: str
    agreement: str
    loss_before: str
    loss_after: str


class ConvertResult(Result):
    """`result.json` of a conversion.

    Attributes:
      bytes: of all weights as they are stored.
      bytes_bfloat16: of the same weights in bfloat16.
      base_four_bit: whether the base's weights take no more than 16 values in every block: it was quantised before.
    """

    kind: Literal["convert"] = "convert"
    artefact_sha256: Digest
    bytes: Count
    bytes_bfloat16: Count
    base_four_bit: bool
    comparison: Comparison | None
