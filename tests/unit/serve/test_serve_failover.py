"""Two engines, one of which misbehaves: what the client sees, what is labelled, what is spooled."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from appliance.serve.load import Gateway, Seen, ask
from tests.unit.serve.conftest import ASK, DIGESTS, KEY, QUICK, STALLS, Running, Starter, settle, standin

FULL = "one two three four "
BEFORE = {
    "stall": "no first token",
    "garbage": "garbled",
    "half-chunk": "ended early",
    "wrong-model": "wrong model",
    "not-a-stream": "garbled",
    "endless-event": "garbled",
    "500": "http 500",
    "503": "http 503",
}
AFTER = ("cut", "stall-later", "no-end")
GIVEN_S = 0.5
"""What an engine may be given of the time until its failure was known, where its process was killed."""


def events(running: Running, **changes: object) -> list[dict[str, object]]:
    with running.client() as client:
        text = client.post("/v1/chat/completions", json=ASK | {"stream": True} | changes).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"] + [{"done": "[DONE]" in lines}]


def text_of(found: list[dict[str, object]]) -> str:
    return "".join(one["choices"][0]["delta"].get("content", "") for one in found if one.get("choices"))


def test_an_answer_names_engine_model_and_run(calm: Running) -> None:
    running = calm
    answer = running.ask()
    assert answer.headers["x-engine"] == "primary"
    about = {"engine": "primary", "model_sha256": DIGESTS["primary"], "run": "run_1", "serving": "serving_1"}
    assert answer.json()["appliance"] == about
    assert answer.json()["choices"][0]["message"]["content"] == FULL
    first, *_, last = events(running)
    assert first["appliance"] == about
    assert last == {"done": True}
    assert running.spool() == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", BEFORE)
def test_a_failure_before_the_first_token_is_answered_by_the_other(calm: Running, mode: str, stream: bool) -> None:
    running = calm
    bound, took = (STALLS["first_token_s"] if mode == "stall" else 0) + 1.0, list[float]()
    while not took or (min(took) >= bound and len(took) < 3):  # a busy machine may spoil a round, not three
        settle(running)
        running.set("primary", mode)
        began = time.monotonic()
        if stream:
            found = events(running)
            about, text = found[0]["appliance"], text_of(found)
            assert found[-1] == {"done": True}
        else:
            answer = running.ask()
            about, text = answer.json()["appliance"], answer.json()["choices"][0]["message"]["content"]
            assert answer.headers["x-degraded"] == "retried"
        took.append(time.monotonic() - began)
        assert text == FULL
        labels = (about["engine"], about["model_sha256"], about["degraded"])
        assert labels == ("fallback", DIGESTS["fallback"], "retried")
        (line,) = running.spool()
        assert (line["reason"], line["engine"], line["failed"]) == ("retried", "fallback", [f"primary: {BEFORE[mode]}"])
    assert min(took) < bound


@pytest.mark.parametrize("mode", AFTER)
def test_a_failure_after_the_first_token_ends_a_stream_with_an_error_that_says_so(calm: Running, mode: str) -> None:
    running = calm
    running.set("primary", mode)
    found = events(running)
    assert found[-1] == {"done": False}
    assert found[-2]["error"]["code"] == "answer_cut"
    assert "incomplete" in found[-2]["error"]["message"]
    assert text_of(found).startswith("one two ")
    assert running.spool()[0]["reason"] == "cut"


@pytest.mark.parametrize("mode", AFTER)
def test_an_answer_that_is_not_a_stream_is_never_cut(calm: Running, mode: str) -> None:
    running = calm
    running.set("primary", mode)
    answer = running.ask()
    assert answer.json()["choices"][0]["message"]["content"] == FULL
    assert answer.headers["x-engine"] == "fallback"


def test_the_first_engine_is_taken_back_when_it_has_proved_itself(start: Starter) -> None:
    running = start()
    running.set("primary", "500")
    running.wait(lambda: not running.engine("primary").well)
    assert running.ask().headers["x-degraded"] == "fallback"
    running.set("primary", "ok")
    running.wait(lambda: running.engine("primary").well)
    assert running.ask().headers["x-engine"] == "primary"
    assert [line["reason"] for line in running.spool()] == ["fallback"]


def test_an_engine_that_is_dead_inside_is_found_without_a_request(start: Starter) -> None:
    running = start(health=QUICK.model_copy(update=STALLS))
    running.set("primary", "stall")
    running.wait(lambda: not running.engine("primary").well)
    assert running.said("primary") == []


def test_a_killed_engine_is_started_again_and_a_stopped_one_too(start: Starter) -> None:
    running = start(health=QUICK.model_copy(update={"restart_s": 1.0, "probe_s": 0.1, **STALLS}))
    first = running.pid("primary")
    os.kill(first, signal.SIGKILL)
    second = running.pid("primary", first)
    os.kill(second, signal.SIGSTOP)
    assert running.pid("primary", first, second)


def test_an_engine_that_reads_a_large_model_is_left_to_it(start: Starter, tmp_path: Path) -> None:
    """Until its first token it has longer than between two: vLLM takes minutes, and was started anew for ever."""
    control = tmp_path / "primary.control"
    control.write_text("stall")
    patient = QUICK.model_copy(update={"first_token_s": 0.5, "restart_s": 0.5, "start_s": 600.0})
    slow = start(standin("primary", control), health=patient, wait=False)
    slow.wait(lambda: slow.engine("primary").pid != 0)
    first = slow.engine("primary").pid
    time.sleep(3.0)
    assert (slow.engine("primary").pid, slow.engine("primary").well) == (first, False)
    control.write_text("ok")
    slow.wait(lambda: slow.engine("primary").well)
    assert slow.engine("primary").pid == first

    control.write_text("stall")
    hasty = start(standin("primary", control), health=patient.model_copy(update={"start_s": 1.0}), wait=False)
    hasty.wait(lambda: hasty.engine("primary").pid != 0)
    first = hasty.engine("primary").pid
    hasty.wait(lambda: hasty.engine("primary").pid not in (0, first))


def test_failover_of_a_killed_engine_takes_less_than_a_quarter_of_a_second(start: Starter) -> None:
    """Bar: p99 of at most 250 ms beyond what an engine is given. A busy machine may spoil a round, not three."""
    running = start(health=QUICK.model_copy(update={"probe_s": 0.1, "proofs": 1}))  # nobody waits for a first token
    p99s: list[float] = []
    while not p99s or (min(p99s) > 250 and len(p99s) < 3):
        seen = asyncio.run(ask_while_killing(running, kills=3))
        assert {one.outcome for one in seen} <= {"answered", "cut"}, "a request was lost"
        over = [one for one in seen if one.degraded and one.first]
        assert len(over) >= 30
        took = [one.first - one.sent - min(one.detected_s, GIVEN_S) for one in over]
        p99s.append(1000 * float(np.percentile(took, 99)))
    assert min(p99s) <= 250


async def ask_while_killing(running: Running, kills: int) -> list[Seen]:
    """Four clients that ask again when they have their answer, until the primary was killed and came back so often."""
    to, seen, asking = Gateway(address=running.address, key=KEY), list[Seen](), True

    async def client() -> None:
        body = {"model": "notes", "prompt": "x", "max_tokens": 4, "stream": True}
        while asking:
            seen.append(await ask(to, body, time.monotonic()))

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for _ in range(kills):
        await asyncio.sleep(0.2)
        pid = await asyncio.to_thread(running.pid, "primary")
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(running.pid, "primary", pid)
    asking = False
    await asyncio.gather(*clients)
    return seen


def test_while_no_engine_is_well_requests_wait_and_then_are_told(start: Starter) -> None:
    running = start()
    for name in DIGESTS:
        running.set(name, "500")
    running.wait(lambda: not any(engine.well for engine in running.state().engines))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(running.ask)
        time.sleep(0.3)
        running.set("fallback", "ok")
        assert waiting.result().json()["choices"][0]["message"]["content"] == FULL
    running.set("fallback", "500")
    running.wait(lambda: not any(engine.well for engine in running.state().engines))
    lost = running.ask()
    assert lost.status_code == 503
    assert lost.json()["error"]["code"] == "no_engine"
    assert int(lost.headers["retry-after"]) > 0
    assert running.spool()[-1]["reason"] == "lost"


def test_engines_end_with_the_gateway(start: Starter) -> None:
    running = start()
    pids = [running.pid(name) for name in DIGESTS]
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_was_counted_is_the_result(start: Starter) -> None:
    running = start()
    running.ask()
    running.set("primary", "cut")
    events(running)
    running.ask(model="other")
    result = running.end()
    assert (result["answered"], result["cut"], result["refused"], result["lost"]) == (2, 1, 1, 0)
