"""What `evaluate run --benchmark` and `evaluate compare` say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.cli import render
from appliance.cli.settings import Settings
from appliance.events.evaluation import BenchmarkMeasured
from appliance.flows.evaluation.benchmark import Asked, Planned, measure
from appliance.flows.evaluation.comparison import Compared, compare_runs
from appliance.jobs.benchmark import YES_OR_NO
from appliance.significance.planning import DISCORDANT

NOT_DISTINGUISHABLE = "not distinguishable: no difference was shown, which is not to say that there is none"


def run(chosen: Settings, named: str, asked: Asked) -> None:
    """Measure, and say what was found; what could be found is said before."""
    home, run_id = chosen.home(), chosen.run(named)
    with render.progress(chosen, "measuring") as bar:
        measured = measure(
            home,
            run_id,
            asked,
            chosen.operator(),
            lambda planned: render.note(chosen, planned_line(planned)),
            lambda done, of: bar.update(done, of, "answers judged"),
        )
    document = {"run": run_id, "measured": [event.facts() for event in measured]}
    render.result(chosen, "evaluate.benchmark", document, [line for event in measured for line in _lines(event)])


def compare(chosen: Settings, first: str, second: str, benchmark: str) -> None:
    """Compare two runs, and say what was found."""
    runs = (chosen.run(first), chosen.run(second))
    found = compare_runs(chosen.home(), *runs, benchmark)
    document = {"runs": list(runs), "compared": [_document(one) for one in found]}
    render.result(chosen, "evaluate.compare", document, [line for one in found for line in _compared_lines(one)])


def planned_line(planned: Planned) -> str:
    """Say what so many items could show."""
    if planned.metric in YES_OR_NO:
        differ = "if models differ on a tenth of the items" if planned.detectable < DISCORDANT else "all of it one way"
        size = f"{planned.detectable * 100:.1f} percentage points ({differ})"
    else:
        size = f"{planned.detectable:.2f} standard deviations of the differences"
    return f"{planned.metric}, {planned.items} items: a difference of {size} is found four times in five"


def _lines(event: BenchmarkMeasured) -> Iterator[str]:
    unit, scale = _scale(event.metric)
    means = ", ".join(f"{name} {float(mean) * scale:.2f}" for name, mean in event.means.items())
    yield f"{event.metric} on {event.items} items: {means} {unit}".rstrip()
    for one in event.differences:
        change, low, high = (float(part) * scale for part in (one.change, one.low, one.high))
        yield _said(f"{one.after} against {one.before}", change, low, high, one.p, one.test, one.verdict)


def _compared_lines(found: Compared) -> Iterator[str]:
    unit, scale = _scale(found.metric)
    one = found.difference
    before, after = one.before * scale, one.after * scale
    yield f"{found.metric} on {one.items} items: first {before:.2f}, second {after:.2f} {unit}".rstrip()
    change, low, high = one.change * scale, one.low * scale, one.high * scale
    yield _said("the second against the first", change, low, high, f"{one.p:.4g}", one.test, one.verdict)
    yield planned_line(Planned(metric=found.metric, items=one.items, detectable=found.detectable))


def _said(who: str, change: float, low: float, high: float, p: str, test: str, verdict: str) -> str:
    told = NOT_DISTINGUISHABLE if verdict == "not distinguishable" else verdict
    return f"  {who}: {change:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), p = {p} by {test}: {told}"


def _scale(metric: str) -> tuple[str, float]:
    if metric in YES_OR_NO:
        return "%", 100.0
    return ("nat per token", 1.0) if metric == "log-likelihood" else ("of 100", 1.0)


def _document(found: Compared) -> dict[str, Any]:
    one = found.difference
    return {
        "metric": found.metric,
        "benchmark_sha256": found.benchmark_sha256,
        "variants": list(found.variants),
        "items": one.items,
        "before": one.before,
        "after": one.after,
        "change": one.change,
        "low": one.low,
        "high": one.high,
        "p": one.p,
        "test": one.test,
        "verdict": one.verdict,
        "detectable": found.detectable,
    }
