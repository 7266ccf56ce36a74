"""What judging a model is worth: false alarms where there is no difference, and what 8 bits cost a real model.

The base is SmolLM2-135M-Instruct, which comes in 4 bits and is dequantised: what is lost here comes on top of that.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
from figures import Figure, Report, arguments  # noqa: E402

from appliance.significance.paired import compare_right, compare_scores  # noqa: E402

if TYPE_CHECKING:
    from appliance.evaluate.predictions import Predictions

PREDICTIONS, QUICK_PREDICTIONS = 20_000, 512
FOUR_BIT = "the base came in 4 bits"


def false_alarms(splits: int, items: int, seed: int) -> tuple[float, float]:
    """How often one model is told from itself: by scores (bootstrap), and by right and wrong (exact McNemar).

    Each item has a difficulty of its own; a model answers it twice, and each split deals the two answers anew, one to
    each side. Scores are skewed, as log-likelihoods are.
    """
    generator = np.random.default_rng(seed)
    alarms = np.zeros(2)
    for _ in range(splits):
        difficulty = generator.beta(0.8, 1.2, size=items)
        right = generator.random((2, items)) < difficulty
        scores = -generator.gamma(2.0, 1.0 + difficulty, size=(2, items))
        dealt = generator.integers(0, 2, size=items)
        place = np.arange(items)
        alarms += (
            compare_scores(scores[dealt, place], scores[1 - dealt, place]).p < 0.05,
            compare_right(right[dealt, place], right[1 - dealt, place]).p < 0.05,
        )
    return float(alarms[0] / splits), float(alarms[1] / splits)


def _alarms(report: Report) -> None:
    splits = 200 if report.quick else 1000
    scores, shares = false_alarms(splits, items=500, seed=0)
    note = f"{splits} splits of 500 items"
    bar: dict[str, float] = {"least": 0.043, "bar": 0.057}
    report.figures += [
        Figure(name="aa_false_positive_fraction", value=scores, unit="", repeats=splits, note=note, **bar),
        Figure(
            name="aa_false_positive_fraction_mcnemar",
            value=shares,
            unit="",
            repeats=splits,
            note="an exact test of whole numbers cries out less often than 5 %",
            **bar,
        ),
    ]


def _eight_bits(report: Report) -> None:
    import media
    import torch

    from appliance.models.conversion import convert
    from appliance.models.gguf_writing import NAME, write_gguf
    from appliance.models.loading import load
    from appliance.models.packing import open_packed, pack

    count = QUICK_PREDICTIONS if report.quick else PREDICTIONS
    with tempfile.TemporaryDirectory() as name:
        places = {part: Path(name) / part for part in ("base", "q8_0", "again", "int8")}
        media.model(places["base"])
        for part in ("q8_0", "again", "int8"):
            places[part].mkdir()
        write_gguf(places["base"], "q8_0", places["q8_0"], "SmolLM2", "apache-2.0")
        convert(places["q8_0"] / NAME, places["again"])
        before = _predict(*load(places["base"], torch.bfloat16), count)
        q8_0 = _predict(*load(places["again"], torch.bfloat16), count)
        whole = 2 * sum(parameter.numel() for parameter in load(places["base"], torch.bfloat16)[0].parameters())
        _add(report, "int8", before, q8_0, whole / (places["q8_0"] / NAME).stat().st_size, "GGUF Q8_0")
        if report.quick:
            return
        pack(places["base"], "int8", places["int8"])
        packed = _predict(*open_packed(places["int8"], "cpu"), count)
        size = sum(path.stat().st_size for path in places["int8"].glob("*.safetensors"))
        _add(report, "int8_bitsandbytes", before, packed, whole / size, "rounds activations too; embedding in bfloat16")


def _predict(model: Any, tokenizer: Any, count: int) -> Predictions:
    from appliance.evaluate.predictions import predict
    from appliance.evaluate.utility import blocks
    from appliance.train.adapting import body
    from appliance.train.logits import find_logits

    inner: Any = body(model)
    return predict(inner, find_logits(model, inner), blocks(tokenizer, count))


def _add(report: Report, name: str, before: Predictions, after: Predictions, ratio: float, note: str) -> None:
    from appliance.evaluate.predictions import shift

    found = shift(before, after)
    worst = max(abs(found.low), abs(found.high))
    spread, size = (found.low, found.high), before.right.size
    note = f"{note}; {FOUR_BIT}"
    report.figures += [
        Figure(
            name=f"{name}_accuracy_change_hi_pp",
            value=worst,
            unit="points",
            bar=0.5,
            repeats=size,
            spread=spread,
            note=f"{found.points:+.3f} points, {found.agreement:.2f} % the same prediction; {note}",
        ),
        Figure(name=f"{name}_size_ratio", value=ratio, unit="times", bar=1.8, better="higher", note=note),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    report = Report(bench="evaluate", quick=options.quick)
    _alarms(report)
    _eight_bits(report)
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
