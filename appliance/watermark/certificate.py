"""The certificate of a detection: canonical JSON that says what was compared with what, and what follows.

Every number is a decimal string, so that no two readers understand different floats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from decimal import Decimal
from importlib.resources import files
from typing import Any

import rfc8785

from appliance.watermark.detection import is_detected, log_p_bound

SCHEMA = "appliance.watermark/1"
FLOOR = -128
"""Smaller bounds are not stated: a p of 2^-128 is the chance of guessing the key, below it the number means nothing."""

POST_PROCESSING = (
    "The mark is a function of the differentially private adapter, the public base model, public text and a key that "
    "was drawn independently of the private data and of the noise of training. By post-processing the marked adapter "
    "has the (epsilon, delta) of the unmarked one."
)


def algorithm_sha256() -> str:
    """Digest `algorithm.txt`, the text that defines signs, mark and statistic, as `sha256sum` does."""
    return hashlib.sha256((files("appliance.watermark") / "algorithm.txt").read_bytes()).hexdigest()


def strength_text(rho: float) -> str:
    """Write a strength as it is stated, exactly: it has four digits."""
    return format(Decimal(repr(rho)), "f")


def text_of(score: float) -> str:
    """Write a score as it is stated: three decimals."""
    return f"{score:.3f}"


def p_text(score: float, keys_tested: int) -> str:
    """Write the bound on p: "1", "2^-K" with whole K rounded towards 1, or "2^-128" for anything smaller."""
    bits = math.ceil(log_p_bound(score, keys_tested) / math.log(2))
    return "1" if bits >= 0 else f"2^{max(FLOOR, bits)}"


def verdict(score: float, keys_tested: int) -> dict[str, Any]:
    """Say what the statistic says: the part of a certificate that a reader can recompute from the score."""
    return {
        "statistic": text_of(score),
        "p_bound": p_text(float(text_of(score)), keys_tested),
        "keys_tested": keys_tested,
        "correction": "Bonferroni",
        "detected": is_detected(float(text_of(score)), keys_tested),
    }


def certificate(
    digests: Mapping[str, str],
    suspect_kind: str,
    score: float,
    keys_tested: int,
    predicted: Mapping[str, float] | None = None,
) -> bytes:
    """Write the certificate (RFC 8785 and a newline).

    Args:
      digests: what was compared: `suspect_sha256`, `model_sha256` (the base), `escrow_sha256`, `algorithm_sha256`,
        `commitment`, `key_id`, `run_id`, `role`.
      suspect_kind: "adapter" or "model".
      score: T.
      keys_tested: how many keys were tried on this suspect.
      predicted: the envelope, for the certificate of an embedding.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **digests,
        "suspect_kind": suspect_kind,
        **verdict(score, keys_tested),
        "statement": POST_PROCESSING,
    }
    if predicted is not None:
        document["predicted"] = {name: text_of(value) for name, value in predicted.items()}
    return rfc8785.dumps(document) + b"\n"
