"""What `serve drill` and `serve bench` print."""

from __future__ import annotations

from appliance.cli import render
from appliance.jobs.trials import BenchResult, DrillResult

ENOUGH = 100
"""Requests from which Little's law says something."""


def drilled(result: DrillResult) -> list[str]:
    """Say what became of requests during each fault, and how long failover took."""
    head = ("fault", "requests", "answered", "degraded", "cut", "lost", "unlabelled", "well again")
    rows = [
        (f.fault, f.requests, f.answered, f.degraded, f.cut, f.lost, f.unlabelled, "yes" if f.came_back else "NO")
        for f in result.faults
    ]
    known = f"{result.failover_p50_ms:g} ms in the median, {result.failover_p99_ms:g} ms at p99"
    return [
        *render.table(head, rows),
        *render.fields(
            [
                ("failovers", f"{result.failovers}; from a known failure to the first token {known}"),
                ("failure known", f"after {result.detection_max_ms:g} ms at most"),
                ("taken out of service", f"{result.opened} times"),
            ]
        ),
    ]


def measured(result: BenchResult) -> list[str]:
    """Say what was measured, with what speaks for and against it."""
    rows = [
        (name, times.p50, times.p95, times.p99)
        for name, times in (
            ("first token (TTFT)", result.first_token),
            ("per token (TPOT)", result.per_token),
            ("whole answer", result.whole),
        )
    ]
    differ = f"gateway and clients differ by {100 * result.littles_residual:.2f} % over {result.requests} requests"
    return [
        *render.table(("milliseconds", "p50", "p95", "p99"), rows),
        *render.fields(
            [
                ("requests", f"{result.requests}, {result.failed} failed, {result.degraded} degraded"),
                ("tokens per second", f"{result.tokens_per_s:g}"),
                ("in flight", f"{result.in_flight:g} on average"),
                ("Little's law", f"{differ}{'' if result.requests >= ENOUGH else '; too few to say much'}"),
                ("sent late", f"{100 * result.harness_overhead:.2f} % of the median answer"),
            ]
        ),
    ]
