"""`evaluate compare`: two runs on one public benchmark, from the scores that their measurements left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pydantic import ValidationError

from appliance.errors import ArtefactMissing, IntegrityError, UsageError
from appliance.events.evaluation import BenchmarkMeasured
from appliance.flows.evaluation.benchmark import ScoreFile, absolute, compare, plan
from appliance.flows.home import Home
from appliance.jobs.benchmark import Benchmark, Metric, read_benchmark
from appliance.jobs.variants import ADAPTER, MARKED
from appliance.significance.paired import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two runs on one benchmark.

    Attributes:
      metric: what was measured.
      benchmark_sha256: on what.
      variants: which variant of each.
      difference: of the second from the first.
      detectable: what so many items could show.
    """

    metric: Metric
    benchmark_sha256: str
    variants: tuple[str, str]
    difference: Difference
    detectable: float


def compare_runs(home: Home, first: str, second: str, benchmark: str) -> list[Compared]:
    """Compare the newest measurements of two runs on one benchmark; nothing is computed anew, nothing recorded.

    Raises:
      ArtefactMissing: one of them was not measured on it.
      UsageError: on different numbers of items.
      IntegrityError: a file of scores is not the one that the ledger records.
    """
    whole = read_benchmark(absolute(benchmark))
    one, two = (_scores(home, run, whole) for run in (first, second))
    return [_compare_files(one[metric], two[metric]) for metric in whole.metrics]


def _compare_files(one: ScoreFile, two: ScoreFile) -> Compared:
    variants = tuple(MARKED if MARKED in file.scores else ADAPTER for file in (one, two))
    before, after = one.scores[variants[0]], two.scores[variants[1]]
    if len(before) != len(after):
        raise UsageError(f"one was measured on {len(before)} items, the other on {len(after)}", where="--items")
    return Compared(
        metric=one.metric,
        benchmark_sha256=one.benchmark_sha256,
        variants=(variants[0], variants[1]),
        difference=compare(one.metric, before, after),
        detectable=plan(one.metric, len(before)).detectable,
    )


def _scores(home: Home, run_id: str, benchmark: Benchmark) -> dict[str, ScoreFile]:
    with home.reader() as ledger:
        measured = [entry.leaf["facts"] for entry in ledger.entries(BenchmarkMeasured, subject=run_id)]
    newest = {facts["metric"]: facts for facts in measured if facts["benchmark_sha256"] == benchmark.sha256}
    for metric in benchmark.metrics:
        if metric not in newest:
            hint = f"appliance evaluate run {run_id} --benchmark FILE"
            raise ArtefactMissing(f"run {run_id} was not measured on this benchmark", hint=hint)
    return {metric: _read(home, newest[metric]) for metric in benchmark.metrics}


def _read(home: Home, facts: dict[str, str]) -> ScoreFile:
    path = home.run(facts["run_id"]).benchmarks / f"{facts['benchmark_id']}.json"
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != facts["scores_sha256"]:
            raise IntegrityError("the scores are not those that the ledger records", where=str(path))
        return ScoreFile.model_validate_json(data)
    except (FileNotFoundError, ValidationError):
        raise ArtefactMissing("the scores of a measurement are gone", where=str(path)) from None
