"""A measurement: requests come at random times that do not depend on answers, and the times of each are kept.

A closed loop would send less when the engine is slow, and so never see how slow it is. Here a request that is sent late
counts from when it was due, and the harness says how late it was.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

import numpy as np

from appliance.errors import ServingDegraded
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import GatewayState
from appliance.jobs.trials import BenchJob, BenchResult, Percentiles
from appliance.serve.load import Gateway, Seen, send_all
from appliance.serve.subject import Subject, serving

WORDS = ("river", "stone", "lamp", "north", "paper", "seven", "green", "horse", "cloud", "table", "music", "bread")
SETTLE_S = 1.0


def run(job: BenchJob, run_dir: RunDir) -> BenchResult:
    """Measure. Raises `ServingDegraded` where no request was answered."""
    return asyncio.run(_bench(job, run_dir))


async def _bench(job: BenchJob, run_dir: RunDir) -> BenchResult:
    draw = np.random.default_rng(job.seed)
    async with serving(job.serve, run_dir) as subject:
        before = await _calm(subject)
        begin = time.monotonic() + 0.2
        due = _arrivals(draw, job, begin)
        to = Gateway(address=before.address, key=subject.key)
        seen = await send_all(to, due, [_body(draw, job) for _ in due])
        after = await _calm(subject)
    return sum_up(seen, after.busy_s - before.busy_s)


def _arrivals(draw: np.random.Generator, job: BenchJob, begin: float) -> list[float]:
    gaps = draw.exponential(1 / job.rate, size=max(8, int(3 * job.rate * job.seconds)))
    times = np.cumsum(gaps)
    return [begin + float(at) for at in times[times < job.seconds]] or [begin]


def _body(draw: np.random.Generator, job: BenchJob) -> dict[str, Any]:
    """Make a request for a stream of exactly so many tokens as the model likes, of a prompt that no other has."""
    prompt = " ".join(draw.choice(WORDS, size=job.prompt_words).tolist())
    return {"model": job.serve.model, "prompt": prompt, "max_tokens": job.answer_tokens, "stream": True}


async def _calm(subject: Subject) -> GatewayState:
    """Wait until the gateway has written what it counted."""
    await asyncio.sleep(SETTLE_S)
    state = subject.state()
    if state is None:
        raise ServingDegraded("the gateway says nothing")
    return state


def sum_up(seen: list[Seen], busy_s: float) -> BenchResult:
    """Sum up what clients saw, and compare it with how long the gateway says that requests were open.

    Every request began and ended within the window, so Little's law (L = arrivals in a second times W) says that the
    gateway's seconds and the clients' are the same number. They are counted by two processes.

    Args:
      seen: every request.
      busy_s: seconds in which requests were open, added up, by the gateway.
    """
    good = [one for one in seen if one.outcome == "answered" and one.first]
    if not good:
        refused = sum(one.outcome == "refused" for one in seen)
        hint = "a prompt must fit into the context: give fewer --prompt-words" if refused else ""
        raise ServingDegraded(f"no request was answered, {refused} of {len(seen)} were refused", hint=hint)
    total = max(one.last for one in seen) - min(one.due for one in seen)
    waited = sum(one.last - one.due for one in seen)
    whole = [one.last - one.due for one in good]
    return BenchResult(
        requests=len(seen),
        answered=len(good),
        degraded=sum(one.degraded != "" for one in good),
        failed=len(seen) - len(good),
        first_token=_percentiles([one.first - one.due for one in good]),
        per_token=_percentiles([(one.last - one.first) / (one.tokens - 1) for one in good if one.tokens > 1]),
        whole=_percentiles(whole),
        tokens_per_s=round(sum(one.tokens for one in good) / total, 3),
        in_flight=round(busy_s / total, 4),
        littles_residual=round(abs(waited - busy_s) / busy_s, 6) if busy_s else 1.0,
        harness_overhead=round(max(0.0, median(one.sent - one.due for one in good)) / median(whole), 6),
    )


def _percentiles(seconds: list[float]) -> Percentiles:
    p50, p95, p99 = (round(1000 * float(np.percentile(seconds or [0.0], p)), 3) for p in (50, 95, 99))
    return Percentiles(p50=p50, p95=p95, p99=p99)
