"""Serving: what a drill loses, what the gateway costs, whether the harness can be believed, tokens a second by engine.

Both sides of the gateway's cost are one engine, asked in turns through the gateway and at its own socket; what it takes
of a processor is counted beside an engine without a model, which a busy machine disturbs less than any clock. Engines
are compared on one model and machine, each beside its ceiling: memory bandwidth over the bytes of the model, which one
stream cannot exceed. vLLM runs where APPLIANCE_VLLM names the Python of its environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import media
import numpy as np
from figures import Figure, Report, arguments

from appliance.isolation import interpreter
from appliance.jobs.job import IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import EngineSpec, Health, ServeJob
from appliance.jobs.trials import BenchJob, DrillJob
from appliance.serve.load import Gateway, ask
from appliance.serve.subject import serving

ASKED = {"model": "notes", "prompt": "Once upon a time, in a town by the sea,", "temperature": 0, "stream": True}


def engine(name: str, model: Path, **more: Any) -> EngineSpec:
    stated = {"kind": "llama.cpp", "model": str(model), "model_sha256": "0" * 64, "context": 1024} | more
    return EngineSpec(name=name, **stated)


def job(*engines: EngineSpec, first_token_s: float = 60.0) -> ServeJob:
    health = Health(first_token_s=first_token_s, next_token_s=first_token_s, probe_s=min(2.0, first_token_s / 2))
    isolation = IsolationSpec(network="preferred")
    return ServeJob(
        run_id="run_1", serving_id="serving_1", model="notes", engines=engines, clients="x", health=health,
        isolation=isolation,
    )  # fmt: skip


def run(wanted: DrillJob | BenchJob) -> dict[str, Any]:
    """A trial in the process that does it, as `serve drill` and `serve bench` start it."""
    with tempfile.TemporaryDirectory() as directory:
        RunDir(Path(directory)).write_job(wanted)
        environment = {**os.environ, "APPLIANCE_SUPERVISOR": str(os.getpid())}
        subprocess.run(interpreter.module("appliance.serve", directory), cwd="/", env=environment, check=False)
        found = json.loads((Path(directory) / "result.json").read_text())
    if "error" in found:
        raise RuntimeError(found["message"])
    return dict(found)


def drill(report: Report, gguf: Path, *, quick: bool) -> None:
    requests, rate, first_s = (120, 4.0, 0.7) if quick else (10_000, 4.0, 2.0)  # two loaded cores carry that
    serve = job(engine("primary", gguf), engine("fallback", gguf), first_token_s=first_s)
    found = run(DrillJob(run_id="run_1", serve=serve, requests=requests, rate=rate, answer_tokens=4))
    lost = sum(fault["lost"] + fault["unlabelled"] for fault in found["faults"])
    cut = sum(fault["cut"] for fault in found["faults"])
    note = f"{requests} requests, {len(found['faults'])} faults, {cut} streams cut and said so, "
    note += f"{found['failovers']} failovers"
    report.figures.append(Figure(name="drill_lost", value=lost, unit="requests", bar=0, note=note))
    note = f"median {found['failover_p50_ms']} ms; failures known after {found['detection_max_ms']} ms at most, "
    note += f"{1000 * first_s:g} are allowed"
    value = found["failover_p99_ms"]
    report.figures.append(Figure(name="failover_p99_ms", value=value, unit="ms", bar=250, note=note))


def rapid(gap_s: float) -> EngineSpec:
    """An engine that answers a token every `gap_s`: of requests there can be many in little time."""
    script = str(Path(__file__).with_name("rapid.py"))
    command = (sys.executable, "-I", script, "{socket}", "{name}", str(gap_s))
    return engine("primary", Path("none"), kind="command", command=command, slots=64)


def little(report: Report, *, quick: bool) -> None:
    seconds, serve = (20.0 if quick else 120.0), job(rapid(0.005))
    wanted = BenchJob(run_id="run_1", serve=serve, rate=10.0, seconds=seconds, answer_tokens=48)
    found = run(wanted)
    note = f"n = {found['requests']} requests, {found['failed']} failed, {found['in_flight']:.2f} open on average, "
    note += f"median answer {found['whole']['p50']:.0f} ms; engine without a model, a token every 5 ms"
    for name, bar in (("littles_residual", 0.02), ("harness_overhead", 0.01)):
        report.figures.append(Figure(name=name, value=found[name], unit="fraction", bar=bar, note=note))


async def work(report: Report, *, quick: bool) -> None:
    """What the gateway takes of a processor for a request and for a token that comes alone."""
    count, tokens = (20 if quick else 200), 200
    with tempfile.TemporaryDirectory() as directory:
        async with serving(job(rapid(0.002)), RunDir(Path(directory))) as subject:
            state = subject.state()
            assert state is not None
            to, pid = Gateway(address=state.address, key=subject.key), subject.process.pid
            used, began = processor_s(pid), time.monotonic()
            await asyncio.sleep(3.0)
            idle = (processor_s(pid) - used) / (time.monotonic() - began)
            short = await _work(to, pid, 1, 10 * count, idle)
            long = await _work(to, pid, 1 + tokens, count, idle)
    token = (long - short) / tokens
    note = f"{count} answers of {1 + tokens} tokens against {10 * count} of one, streams, one after the other"
    for name, value in (("gateway_us_per_token", token), ("gateway_us_per_request", short - token)):
        report.figures.append(Figure(name=name, value=1e6 * value, unit="us of processor", note=note, repeats=count))


async def _work(to: Gateway, pid: int, tokens: int, count: int, idle: float) -> float:
    used, began = processor_s(pid), time.monotonic()
    for _ in range(count):
        assert (await ask(to, ASKED | {"max_tokens": tokens}, time.monotonic())).outcome == "answered"
    return (processor_s(pid) - used - idle * (time.monotonic() - began)) / count


async def overhead(report: Report, gguf: Path, *, quick: bool) -> None:
    repeats, body = (9 if quick else 60), ASKED | {"max_tokens": 48}
    with tempfile.TemporaryDirectory() as directory:
        async with serving(job(engine("primary", gguf)), RunDir(Path(directory))) as subject:
            state = subject.state()
            assert state is not None
            words = Path(f"/proc/{state.engines[0].pid}/cmdline").read_text().split("\0")
            socket = next(word for word in words if word.endswith(".sock"))
            sides = {
                "through": Gateway(address=state.address, key=subject.key),
                "direct": Gateway(address=f"unix:{socket}", key="none"),
            }
            used = processor_s(subject.process.pid)
            took: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(repeats + 1):
                for name in sorted(sides, reverse=turn % 2 == 0):
                    seen = await ask(sides[name], body, time.monotonic())
                    assert seen.outcome == "answered"
                    if turn:
                        took[name].append(seen.last - seen.sent)
            used = (processor_s(subject.process.pid) - used) / (repeats + 1)
    alone, both = (median(took[name]) for name in ("direct", "through"))
    ratios = [a / b - 1 for a, b in zip(took["through"], took["direct"], strict=True)]
    figure = Figure(name="gateway_overhead", value=both / alone - 1, unit="fraction", bar=0.01, repeats=repeats)
    figure.note = f"{1000 * (both - alone):.2f} ms of {1000 * alone:.0f} ms; "
    figure.note += f"the gateway took {1000 * used:.1f} ms of processor for an answer of 48 tokens"
    figure.spread = (min(ratios), max(ratios))
    report.figures.append(figure)


def processor_s(pid: int) -> float:
    """Seconds of processor that a process has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def tokens_per_s(spec: EngineSpec, streams: int, seconds: float) -> float:
    """Streams that each ask again when they have their answer, for so long."""
    with tempfile.TemporaryDirectory() as directory:
        async with serving(job(spec), RunDir(Path(directory))) as subject:
            state = subject.state()
            assert state is not None
            to = Gateway(address=state.address, key=subject.key)
            await ask(to, ASKED | {"max_tokens": 8}, time.monotonic())
            until = time.monotonic() + seconds

            async def stream(number: int) -> int:
                tokens = 0
                while time.monotonic() < until:
                    body = ASKED | {"max_tokens": 32, "prompt": f"{ASKED['prompt']} {number} {tokens}"}
                    tokens += (await ask(to, body, time.monotonic())).tokens
                return tokens

            began = time.monotonic()
            done = await asyncio.gather(*(stream(number) for number in range(streams)))
            return sum(done) / (time.monotonic() - began)


def bandwidth() -> float:
    """Bytes a second that this machine reads with one thread, the best of five."""
    data = np.ones(1 << 25)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - began)
    return data.nbytes / min(times)


def compare(report: Report, gguf: Path, *, quick: bool) -> None:
    seconds, speed = (4.0 if quick else 30.0), bandwidth()
    with tempfile.TemporaryDirectory() as scratch:
        whole = media.model(Path(scratch) / "model")  # its weights as float32: what Q4_1 lost stays lost
        peers = {
            "llamacpp": engine("primary", gguf, slots=8, context=512),
            "transformers": engine("primary", whole, kind="transformers"),
        }
        vllm = os.environ.get("APPLIANCE_VLLM")
        if vllm:
            words = (
                vllm,
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--gpu-memory-utilization",
                "0.2",
                "--enforce-eager",
            )
            peers["vllm"] = engine("primary", whole, kind="vllm", command=words, slots=8)
        for name, spec in peers.items():
            _compare_one(report, name, spec, speed, seconds, (1, 4) if quick else (1, 4, 8))
    for streams in () if vllm else (1, 4) if quick else (1, 4, 8):
        note = "not run: APPLIANCE_VLLM names no Python with vLLM"
        report.figures.append(Figure(name=f"tokens_per_s_vllm_{streams}", value=None, unit="tokens/s", note=note))


def _compare_one(
    report: Report, name: str, spec: EngineSpec, speed: float, seconds: float, counts: tuple[int, ...]
) -> None:
    for streams in counts:
        figure = Figure(name=f"tokens_per_s_{name}_{streams}", value=None, unit="tokens/s", better="higher")
        try:
            size = sum(path.stat().st_size for path in _weights(Path(spec.model)))
            figure.value = asyncio.run(tokens_per_s(spec, streams, seconds))
            figure.note = f"one stream reads {size / 1e6:.0f} MB for each token: at most {speed / size:.0f} tokens/s"
        except Exception as obstacle:  # noqa: BLE001 - a peer that cannot run is printed, never left out
            figure.note = f"not run: {type(obstacle).__name__}"
        report.figures.append(figure)


def _weights(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors")) if model.is_dir() else [model]


def main() -> None:
    options = arguments(__doc__ or "", only="one part: drill, little, work, overhead or compare")
    report, quick = Report(bench="serve", quick=options.quick), options.quick
    with tempfile.TemporaryDirectory() as scratch:
        gguf = media.gguf(Path(scratch) / "model.gguf")
        parts: dict[str, Callable[[], object]] = {
            "drill": lambda: drill(report, gguf, quick=quick),
            "little": lambda: little(report, quick=quick),
            "work": lambda: asyncio.run(work(report, quick=quick)),
            "overhead": lambda: asyncio.run(overhead(report, gguf, quick=quick)),
            "compare": lambda: compare(report, gguf, quick=quick),
        }
        for name in [options.only] if options.only else parts:
            parts[name]()
    for figure in report.figures:
        print(figure.line(), file=sys.stderr)
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
