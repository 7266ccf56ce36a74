"""What `train plan` prints of a forecast: memory, time, and what other choices would mean for the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.cli import render
from appliance.flows.run.forecast import Forecast
from appliance.jobs.plan import PrivacyPlan

Row = tuple[float, int, int, float, float]


def sampling(plan: PrivacyPlan) -> list[str]:
    """Say how units are sampled: one line, or one for each phase of a curriculum."""
    if not plan.phases:
        rate = f"rate {float(plan.sample_rate):.4f}"
        return [f"Poisson, {rate}, {plan.steps} steps + {plan.spare_steps} spare"]
    lines = [
        f"Poisson, {phase.name}: rate {float(phase.sample_rate):.4f}, {phase.steps} steps" for phase in plan.phases
    ]
    return [*lines[:-1], f"{lines[-1]} + {plan.spare_steps} spare"]


def template(conversations: Mapping[str, bool], source: str) -> list[str]:
    """Say which shapes of conversation the base's chat template carries, and what becomes of the others."""
    if not conversations:
        return []
    carried = [shape for shape, carries in conversations.items() if carries]
    left = [shape for shape, carries in conversations.items() if not carries]
    if not left:
        return ["carries every shape of conversation that was tried"]
    found = [f"carries {', '.join(carried) or 'no conversation'}"]
    if source == "fallback":
        found.append(f"conversations with {', '.join(left)} become plain text, as template.from: fallback asks")
    else:
        found.append(f"conversations with {', '.join(left)} are not learned from; template.from: fallback makes them")
        found.append("plain text")
    return found


def lines(expected: Forecast) -> list[str]:
    """Show memory and time as fields."""
    engine, time = expected.engine, expected.time
    fields = [
        *_memory(expected),
        ("physical batch", f"{engine.physical_tokens} tokens at once, {engine.dtype} on {engine.device}"),
    ]
    if time is None:
        fields.append(("time", "not known before a self-test has measured this GPU; every run begins with one"))
    else:
        spoken = f"{_duration(time.least)} to {_duration(time.most)}"
        fields.append(("time", f"{spoken}, if every record has the greatest length"))
    return render.fields(fields)


def _memory(expected: Forecast) -> list[tuple[str, str]]:
    """Show the memory; on a GPU there are two, its own and the host's."""
    need, room = expected.need, expected.room
    host = f"{_gib(room.host)} are available"
    if expected.engine.device == "cpu":
        return [("memory", f"about {_gib(expected.memory.total)} at its peak, {host}")]
    name = f" on {room.name}" if room.name else ""
    there = f"{_gib(room.gpu)} are available{name}" if room.gpu is not None else "how much there is is not known"
    return [
        ("memory of the GPU", f"about {_gib(need.gpu)} at its peak, {there}"),
        ("memory of the host", f"about {_gib(need.host)} (an estimate), {host}"),
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Show the trade-off as a table: the last column is what the model feels."""
    head = ("epsilon", "steps", "batch", "noise multiplier", "noise / batch")
    cells = [(f"{e:g}", steps, batch, f"{noise:.2f}", f"{ratio:.5f}") for e, steps, batch, noise, ratio in rows]
    return ["what other choices would mean (less noise / batch is a better model):", *render.table(head, cells)]


def document(expected: Forecast, rows: Sequence[Row]) -> dict[str, Any]:
    """Give the same for --json: bytes, seconds, and the table."""
    memory, time = expected.memory, expected.time
    parts = {name: getattr(memory, name) for name in memory.__slots__}
    names = ("epsilon", "steps", "expected_batch_size", "noise_multiplier", "noise_per_unit")
    return {
        "memory_bytes": {**parts, "total": memory.total},
        "memory_available": expected.room.host if expected.engine.device == "cpu" else expected.room.gpu,
        "memory_is_an_estimate_for_a_gpu": expected.engine.device == "cuda",
        "host_memory_bytes": expected.need.host,
        "host_memory_available": expected.room.host,
        "gpu": expected.room.name or None,
        "physical_tokens": expected.engine.physical_tokens,
        "seconds": None if time is None else [round(time.least), round(time.most)],
        "alternatives": [dict(zip(names, row, strict=True)) for row in rows],
    }


def _gib(memory: int) -> str:
    return f"{memory / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
