"""A measurement on a public benchmark: no key and no private record. Code that is written goes to the supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import IntegrityError
from appliance.jobs.benchmark import (
    MICRO,
    BenchmarkJob,
    BenchmarkResult,
    ChoiceItem,
    CodeItem,
    ExactItem,
    Item,
    ReferenceItem,
    TextItem,
    read_benchmark,
)
from appliance.jobs.exchange import Exchanged
from appliance.jobs.rundir import RunDir
from appliance.jobs.variants import BASE
from appliance.worker import confinement
from appliance.worker.variants import enter, open_variants

if TYPE_CHECKING:
    from appliance.evaluate.benchmarks import Measuring, Scores

JOB = BenchmarkJob


def run(job: BenchmarkJob, run_dir: RunDir) -> BenchmarkResult:
    """Measure base and adapters on the first items of a benchmark."""
    exchange = Exchanged.inherited()
    isolation = enter(job, run_dir, *([] if job.benchmark.startswith(MICRO) else [Path(job.benchmark)]))
    benchmark = read_benchmark(job.benchmark)
    if benchmark.sha256 != job.benchmark_sha256:
        raise IntegrityError("the benchmark is not the one of the job", where=job.benchmark)
    measuring, items = _open(job), benchmark.items[: job.items]
    return BenchmarkResult(
        run_id=job.run_id,
        scores=_measure(measuring, items, exchange),
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _open(job: BenchmarkJob) -> Measuring:
    from appliance.evaluate.benchmarks import Measuring

    opened = open_variants(job)
    return Measuring(
        names=(BASE, *job.adapters),
        tokenizer=opened.tokenizer,
        template=job.train.template,
        meter=opened.meter(),
        writer=opened.writer(),
        most_tokens=job.most_tokens,
    )


def _measure(measuring: Measuring, items: list[Item], exchange: Exchanged) -> Scores:
    match items[0]:
        case TextItem():
            return measuring.log_likelihoods([item.text for item in items if isinstance(item, TextItem)])
        case ChoiceItem():
            asked = [(item.prompt, item.choices, item.answer) for item in items if isinstance(item, ChoiceItem)]
            return measuring.choices(asked)
        case ExactItem():
            return measuring.exact([(item.prompt, item.answer) for item in items if isinstance(item, ExactItem)])
        case ReferenceItem():
            given = [(item.prompt, item.references) for item in items if isinstance(item, ReferenceItem)]
            return measuring.references(given)
    for written in measuring.functions([item.prompt for item in items if isinstance(item, CodeItem)]):
        exchange.say(written)
    return {}
