"""What `model merge` and `model quantize` say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.cli import render
from appliance.events.model import Compared, ModelConverted
from appliance.jobs.conversion import Format

FORMATS: dict[str, Format] = {
    "int8": "int8",
    "nf4": "nf4",
    "q8_0": "gguf-q8_0",
    "q4_1": "gguf-q4_1",
    "q4_0": "gguf-q4_0",
}
"""By what is typed: the first two are safetensors of bitsandbytes, the others GGUF files."""
FOUR_BIT = "the base came in 4 bits and was imported as that: what is lost here comes on top of what was lost before"


def lines(event: ModelConverted, out: Path) -> Iterator[str]:
    """Say what was made, what it lost, and that the mark is in it."""
    small = f"in bfloat16 they take {event.bytes_bfloat16 / event.bytes:.2f} times as much"
    yield from render.fields(
        [
            ("written to", out),
            ("digest", event.artefact_sha256),
            ("weights", f"{event.bytes / 1e6:.1f} MB; {small}"),
            ("watermark", f"found, score {event.watermark_score}"),
        ]
    )
    if event.comparison:
        yield from _change(event.comparison)
    if event.base_four_bit and event.format != "merged":
        yield FOUR_BIT


def _change(found: Compared) -> Iterator[str]:
    change, low, high = (float(one) for one in (found.change, found.low, found.high))
    verdict = "a loss" if high < 0 else "a gain" if low > 0 else "not distinguishable from no change"
    yield (
        f"public text, {found.predictions} predictions against the {found.against}: "
        f"{float(found.agreement):.2f} % are the same"
    )
    yield (
        f"  right: {float(found.accuracy_before):.2f} % before, {float(found.accuracy_after):.2f} % after, "
        f"change {change:+.3f} points (95 % interval {low:+.3f} to {high:+.3f}): {verdict}"
    )
    yield f"  loss: {float(found.loss_before):.4f} before, {float(found.loss_after):.4f} after, nat per token"
