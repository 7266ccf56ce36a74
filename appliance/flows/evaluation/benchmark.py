"""`evaluate run --benchmark`: a run's models on public benchmarks, paired, with what could be found.

    items -> how large a difference would be found -> worker (code: the examiner) -> scores, file -> benchmark.measured

Scores of single items stand in a file beside the run, so that two runs can be paired later; what a model wrote stands
nowhere. That the benchmark is public is the operator's word: it is in the entry, as the digest of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from appliance.errors import IntegrityError
from appliance.events.evaluation import BenchmarkMeasured, PairedDifference
from appliance.files import make_directory, write_atomic
from appliance.flows import examination, gpus, launch
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.passing import passing_directory
from appliance.flows.subject import Subject, find_subject
from appliance.isolation.examiner import Task
from appliance.jobs import exchange
from appliance.jobs.benchmark import (
    MICRO,
    YES_OR_NO,
    Benchmark,
    BenchmarkJob,
    BenchmarkResult,
    CodeItem,
    Metric,
    read_benchmark,
)
from appliance.jobs.exchange import Exchange
from appliance.jobs.variants import ADAPTER, BASE, MARKED
from appliance.significance.paired import Difference, compare_right, compare_scores
from appliance.significance.planning import detectable_mean, detectable_share
from appliance.values import Digest, Value, decimal, to_json

Scores = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is measured: a file or `micro:N`, how many of its items, and how long an answer may be."""

    benchmark: str
    items: int | None = None
    most_tokens: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a measurement could find, said before it is made: in shares, or in standard deviations of differences."""

    metric: Metric
    items: int
    detectable: float


class ScoreFile(Value):
    """Scores of single items, as they lie beside the run."""

    schema_: Literal["appliance.scores/1"] = Field(default="appliance.scores/1", alias="schema")
    run_id: str
    benchmark_sha256: Digest
    metric: Metric
    scores: dict[str, Annotated[list[float], Field(min_length=1)]]


def measure(
    home: Home,
    run_id: str,
    asked: Asked,
    operator: Operator,
    announce: Callable[[Planned], None],
    progress: Callable[[int, int], None],
) -> list[BenchmarkMeasured]:
    """Measure the base and the adapters of a run on a benchmark; one entry for each metric.

    Args:
      home: the home.
      run_id: the run.
      asked: what is measured.
      operator: who asks, and says that the benchmark is public.
      announce: is told what could be found, before anything is measured.
      progress: is told how many answers of how many were judged; only code is judged one by one.

    Raises:
      ArtefactMissing: there is no such run or file.
      DataInvalid: the file is no benchmark.
      PolicyDenied: the run has not finished.
      IsolationViolated: code could not be judged where it can do no harm.
    """
    asked = Asked(benchmark=absolute(asked.benchmark), items=asked.items, most_tokens=asked.most_tokens)
    benchmark = read_benchmark(asked.benchmark)
    items = min(asked.items or len(benchmark.items), len(benchmark.items))
    with home.reader() as ledger:
        found = find_subject(ledger, home, run_id)
    gpus.require(found.job.engine, processes=1)
    for metric in benchmark.metrics:
        announce(plan(metric, items))
    scores, result = _work(home, found, asked, benchmark, items, progress)
    with Desk.open(home, operator) as desk:
        return [_record(desk, found, benchmark, metric, scores[metric], result) for metric in benchmark.metrics]


def plan(metric: Metric, items: int) -> Planned:
    """Say what so many items could show."""
    detectable = detectable_share(items) if metric in YES_OR_NO else detectable_mean(items, 1.0)
    return Planned(metric=metric, items=items, detectable=detectable)


def absolute(benchmark: str) -> str:
    """Name a file by its whole path; generated tasks have none."""
    return benchmark if benchmark.startswith(MICRO) else str(Path(benchmark).absolute())


# --- measuring ------------------------------------------------------------------------------------------------------


def _work(
    home: Home,
    found: Subject,
    asked: Asked,
    benchmark: Benchmark,
    items: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Scores], BenchmarkResult]:
    job = BenchmarkJob(
        **found.variants(),
        isolation=found.job.isolation,
        benchmark=asked.benchmark,
        benchmark_sha256=benchmark.sha256,
        items=items,
        most_tokens=asked.most_tokens,
    )
    with passing_directory(home, "benchmark") as run_dir, exchange.opened() as pipes:
        run_dir.write_job(job)
        with launch.supervising(run_dir), examination.examiner() as examiner:
            judge = _Judge(pipes, examiner, benchmark, items * (1 + len(found.names)), progress)
            result = launch.run_worker(run_dir, BenchmarkResult, watch=judge.go_on, pipes=pipes)
    scores = {"pass@1": judge.scores()} if isinstance(benchmark.items[0], CodeItem) else result.scores
    names = {BASE, *found.names}
    if any(scores.get(one, {}).keys() != names for one in benchmark.metrics):
        raise IntegrityError("the worker's result is not what it must be")
    if any(len(own) != items for by_name in scores.values() for own in by_name.values()):
        raise IntegrityError("the worker's result is not what it must be")
    return scores, result


class _Judge:
    """Judges code as it is written; it passes through this process and is kept nowhere."""

    def __init__(
        self,
        pipes: Exchange,
        examiner: examination.Examiner,
        benchmark: Benchmark,
        expected: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self._pipes, self._examiner, self._benchmark = pipes, examiner, benchmark
        self._expected, self._progress = expected, progress
        self._verdicts: dict[str, dict[int, float]] = {}

    def go_on(self) -> None:
        for number, name, written in self._pipes.said():
            item = self._benchmark.items[number]
            if isinstance(item, CodeItem):
                passed = self._examiner.examine(_task(item, written)) == "passed"
                self._verdicts.setdefault(name, {})[number] = float(passed)
            self._progress(sum(map(len, self._verdicts.values())), self._expected)

    def scores(self) -> Scores:
        """Give the verdicts in the order of the items."""
        return {name: [own[number] for number in sorted(own)] for name, own in self._verdicts.items()}


def _task(item: CodeItem, written: str) -> Task:
    """Put together what the model wrote; the test may use what the prompt defines besides."""
    return Task(
        code=item.prompt + written,
        prelude=f"{item.prompt}\n    pass\n",
        test=item.test,
        entry_point=item.entry_point,
    )


# --- what comes of it -----------------------------------------------------------------------------------------------


def _record(
    desk: Desk, found: Subject, benchmark: Benchmark, metric: Metric, scores: Scores, result: BenchmarkResult
) -> BenchmarkMeasured:
    """Write the scores beside the run, then the entry that has their digest."""
    benchmark_id = new_id("bench")
    file = ScoreFile(run_id=found.run.id, benchmark_sha256=benchmark.sha256, metric=metric, scores=scores)
    data = to_json(file)
    directory = desk.home.run(found.run.id).benchmarks
    make_directory(directory)
    write_atomic(directory / f"{benchmark_id}.json", data)
    pairs = [(BASE, ADAPTER), *([(ADAPTER, MARKED)] if MARKED in scores else [])]
    items = len(scores[BASE])
    marked = {} if found.released_sha256 is None else {"released_sha256": found.released_sha256}
    event = BenchmarkMeasured(
        benchmark_id=benchmark_id,
        run_id=found.run.id,
        benchmark_sha256=benchmark.sha256,
        items=items,
        metric=metric,
        detectable=decimal(round(plan(metric, items).detectable, 6)),
        means={name: decimal(round(sum(scores[name]) / items, 6)) for name in (BASE, *found.names)},
        differences=[_state(*pair, compare(metric, scores[pair[0]], scores[pair[1]])) for pair in pairs],
        adapter_sha256=found.adapter_sha256,
        **marked,
        scores_sha256=hashlib.sha256(data).hexdigest(),
        isolation=result.isolation.model_dump(),
        libraries=dict(result.libraries),
    )
    desk.record(event, found.run.policy_sha256)
    return event


def compare(metric: Metric, before: list[float], after: list[float]) -> Difference:
    """Compare two variants on the same items: exactly where items are right or wrong, else by a bootstrap."""
    if metric in YES_OR_NO:
        return compare_right([bool(one) for one in before], [bool(one) for one in after])
    return compare_scores(before, after)


def _state(before: str, after: str, found: Difference) -> PairedDifference:
    return PairedDifference(
        before=before,
        after=after,
        change=decimal(round(found.change, 6)),
        low=decimal(round(found.low, 6)),
        high=decimal(round(found.high, 6)),
        p=f"{found.p:.4g}",
        test=found.test,
        verdict=found.verdict,
    )
