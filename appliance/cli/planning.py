"""What `train plan` prints of a forecast: memory, time, and what other choices would mean for the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.cli import render
from appliance.flows.run.alternatives import Alternative
from appliance.flows.run.forecast import Forecast
from appliance.jobs.plan import PrivacyPlan


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


def unused(idle_gpu: str) -> list[str]:
    """Name a GPU that a run planned for the CPU leaves idle, if there is one."""
    return render.fields([("not used", f"{idle_gpu}: `--device cuda` computes on it")]) if idle_gpu else []


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


def table(rows: Sequence[Alternative]) -> list[str]:
    """Show the trade-off as a table: noise, and what policy, budget and the study of the defaults say."""
    if not rows:
        return []
    head = ("epsilon", "steps", "batch", "noise multiplier", "noise / batch", "")
    cells = [(*_numbers(row), _remark(row)) for row in rows]
    return ["what other choices would mean (docs/utility.md: noise is not all):", *render.table(head, cells)]


def _numbers(row: Alternative) -> tuple[str, int, int, str, str]:
    plan = row.plan
    noise = (f"{plan.noise_multiplier:.2f}", f"{row.noise_per_unit:.5f}")
    return f"{plan.epsilon:g}", plan.steps, plan.expected_batch_size, *noise


def _remark(row: Alternative) -> str:
    if row.chosen:
        return "chosen"
    return f"refused: {row.refused}" if row.refused else row.found


def document(expected: Forecast, rows: Sequence[Alternative]) -> dict[str, Any]:
    """Give the same for --json: bytes, seconds, and the table."""
    memory, time = expected.memory, expected.time
    parts = {name: getattr(memory, name) for name in memory.__slots__}
    return {
        "memory_bytes": {**parts, "total": memory.total},
        "memory_available": expected.room.host if expected.engine.device == "cpu" else expected.room.gpu,
        "memory_is_an_estimate_for_a_gpu": expected.engine.device == "cuda",
        "host_memory_bytes": expected.need.host,
        "host_memory_available": expected.room.host,
        "gpu": expected.room.name or None,
        "physical_tokens": expected.engine.physical_tokens,
        "seconds": None if time is None else [round(time.least), round(time.most)],
        "alternatives": [_alternative(row) for row in rows],
    }


def _alternative(row: Alternative) -> dict[str, Any]:
    names = ("epsilon", "steps", "expected_batch_size", "noise_multiplier")
    return {
        **{name: getattr(row.plan, name) for name in names},
        "noise_per_unit": row.noise_per_unit,
        "chosen": row.chosen,
        "refused": row.refused or None,
        "found": row.found or None,
    }


def _gib(memory: int) -> str:
    return f"{memory / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
