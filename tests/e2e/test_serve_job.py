"""Serving through the command line: a marked run, two llama.cpp servers, and what the ledger says afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import TOKEN, Appliance
from tests.e2e.test_main_job import facts


class Serving:
    """`appliance serve start` as a process, once both engines are well."""

    def __init__(self, appliance: Appliance, run: str, gguf: Path) -> None:
        engines = ("--primary", f"llama.cpp:{gguf}", "--fallback", f"llama.cpp:{gguf}", "--context", "256")
        self.process = appliance.popen("--json", "serve", "start", run, *engines, "--port", "0")
        self.servings = appliance.home / "servings"
        deadline = time.monotonic() + 300
        while not self.well():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def state(self) -> dict[str, Any]:
        (directory,) = self.servings.iterdir()
        return json.loads((directory / "state.json").read_text())

    def well(self) -> bool:
        try:
            return all(engine["well"] for engine in self.state()["engines"])
        except (ValueError, FileNotFoundError):
            return False

    def pids(self) -> list[int]:
        """Processes of the engines that run; 0 stands for one that does not, and a signal to that reaches us."""
        return [engine["pid"] for engine in self.state()["engines"] if engine["pid"]]

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.state()["address"] + "/v1", api_key=key, max_retries=0)


def ask(client: openai.OpenAI, model: str) -> Any:
    said = [{"role": "user", "content": TOKEN}]
    return client.chat.completions.with_raw_response.create(model=model, messages=said, max_tokens=4)  # type: ignore[arg-type]


def vouchers(appliance: Appliance) -> list[int]:
    """Entries that say of an artefact that the appliance made it."""
    return [entry["index"] for entry in appliance.json("ledger", "log", "--type", "model.converted")["entries"]]


def test_a_quantised_run_is_served_and_every_degraded_answer_stands_in_the_ledger(quantised: Any) -> None:
    appliance, made, gguf = quantised
    run = made["run_id"]
    primary = ("--primary", f"llama.cpp:{gguf}")
    assert "no client may ask" in appliance("serve", "start", run, *primary, expect=2).err
    key = appliance.json("serve", "client", "add", "ward")["key"]
    name = appliance.json("serve", "start", run, *primary, "--dry-run")["model"]

    serving = Serving(appliance, run, gguf)
    try:
        client = serving.client(key)
        assert client.models.list().data[0].id == name
        answer = ask(client, name)
        os.kill(serving.pids()[0], signal.SIGKILL)
        degraded = ask(client, name)
        assert degraded.headers["x-engine"] == "fallback"
        appliance("serve", "client", "revoke", "ward")
        with pytest.raises(openai.AuthenticationError):
            ask(client, name)
    finally:
        serving.process.send_signal(signal.SIGINT)
        out, err = serving.process.communicate(timeout=60)
    assert serving.process.returncode == 0, err
    assert TOKEN not in out + err
    assert json.loads(out)["answered"] == 2

    (started,), (told,), (ended,) = (facts(appliance, f"serving.{n}") for n in ("started", "degraded", "ended"))
    (converted,) = facts(appliance, "model.converted")
    labels = {"engine": "primary", "model_sha256": converted["artefact_sha256"], "run": run}
    labels |= {"serving": started["serving_id"]}
    assert answer.parse().model_extra["appliance"] == labels
    assert {f"x-{name.replace('_', '-')}": value for name, value in labels.items()}.items() <= answer.headers.items()
    engine = {"kind": "llama.cpp", "model_sha256": made["artefact_sha256"], "vouched_by": vouchers(appliance)[0]}
    assert started["engines"] == [{"name": one, **engine} for one in ("primary", "fallback")]
    assert (started["run_id"], converted["run_id"]) == (run, run)
    assert started["released_sha256"] == converted["released_sha256"]
    assert started["clients"] == ["ward"]
    assert [(one["id"], one["engine"]) for one in told["answers"]] == [(degraded.headers["x-request-id"], "fallback")]
    assert (ended["answered"], ended["degraded"], ended["ended"]) == (2, 1, "stopped")
    assert facts(appliance, "serving.refused") == []
    assert list(serving.servings.iterdir()) == []
    appliance("ledger", "verify")
    for path in appliance.home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert key.encode() not in data, path
            assert TOKEN.encode() not in data, path


def test_a_supervisor_that_is_killed_takes_all_with_it_and_the_next_one_tells_the_ledger(quantised: Any) -> None:
    """The spool that it leaves is damaged besides: what stands before the damage is told, the next one serves."""
    appliance, made, gguf = quantised
    run = made["run_id"]
    key = appliance.json("serve", "client", "add", "ward")["key"]
    name = appliance.json("serve", "start", run, "--primary", f"llama.cpp:{gguf}", "--dry-run")["model"]
    serving = Serving(appliance, run, gguf)
    client = serving.client(key)
    os.kill(serving.pids()[0], signal.SIGKILL)
    answer = ask(client, name)
    assert answer.headers["x-degraded"]
    pids, (left,) = serving.pids(), serving.servings.iterdir()
    serving.process.kill()
    serving.process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "an engine outlived its gateway"
        time.sleep(0.05)
    with (left / "spool.jsonl").open("ab") as file:
        file.write(b'{"number":1,"at":"20')
    (left / "state.json").unlink()  # else the next one seems well before it is there
    again = Serving(appliance, run, gguf)
    assert ask(again.client(key), name).headers["x-engine"] == "primary"
    again.process.send_signal(signal.SIGINT)
    _, err = again.process.communicate(timeout=60)
    assert again.process.returncode == 0, err
    kept = appliance.home / "set-aside" / left.name / "spool.jsonl"
    assert str(kept.parent) in err
    assert [one["id"] for told in facts(appliance, "serving.degraded") for one in told["answers"]] == [
        answer.headers["x-request-id"]
    ]
    killed, stopped = facts(appliance, "serving.ended")
    assert (killed["ended"], killed["damaged_line"], stopped["ended"]) == ("killed", 1, "stopped")
    assert killed["damaged_sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()


def test_what_may_not_leave_is_not_served(quantised: Any) -> None:
    appliance, made, gguf = quantised
    run, released = made["run_id"], appliance.home / "runs" / made["run_id"] / "released"
    appliance("serve", "client", "add", "ward")
    primary = ("--primary", f"llama.cpp:{gguf}")
    with (gguf / "model.gguf").open("ab") as file:
        file.write(b"x")
    refused = appliance("serve", "start", run, *primary, expect=4)
    assert "no entry of the ledger says that this model is of run" in refused.err
    (released / "adapter_model.safetensors").write_bytes(b"another")
    appliance("serve", "start", run, *primary, expect=8)
    shutil.rmtree(released)
    assert "is not here" in appliance("serve", "start", run, *primary, expect=4).err
    assert [fact["code"] for fact in facts(appliance, "serving.refused")] == [4, 8, 4]
    assert facts(appliance, "serving.started") == []


def test_a_drill_loses_nothing_and_stands_in_the_ledger(
    quantised: Any, stress_count: Callable[[Any, Any], Any]
) -> None:
    """Bars: nothing lost before the first token, failover within 250 ms of the time that an engine is given."""
    appliance, made, gguf = quantised
    run = made["run_id"]
    engine = ("--primary", f"llama.cpp:{gguf}", "--context", "256")
    both = (*engine, "--fallback", f"llama.cpp:{gguf}", "--first-token", "0.5", "--next-token", "0.5")
    assert "noticed" in appliance("serve", "drill", run, *both, "--requests", "10", expect=2).err
    requests, rate = stress_count(300, 10_000), stress_count(14, 40)
    took: list[float] = []
    while not took or (min(took) > 250 and len(took) < 3):  # a busy machine may spoil a drill, not three
        drilled = appliance.json("serve", "drill", run, *both, "--requests", str(requests), "--rate", str(rate))
        told = {one["fault"]: one for one in drilled["faults"]}
        assert sum(one["requests"] for one in told.values()) == requests
        assert sum(one["lost"] + one["unlabelled"] for one in told.values()) == 0
        assert all(one["came_back"] for one in told.values())
        for fault in ("kill", "stop", "stall", "garble", "half", "another", "cut"):
            assert told[f"primary {fault}"]["degraded"] > 0, "the fault was not felt"
        # Of a few failovers beside other tests the 99th percentile is the scheduler's; the full count is run alone.
        took.append(drilled[stress_count("failover_p50_ms", "failover_p99_ms")])
    assert min(took) <= 250

    small = ("--answer-tokens", "8", "--prompt-words", "8")
    measured = appliance.json("serve", "bench", run, *engine, "--rate", "4", "--seconds", "3", *small)
    assert measured["answered"] == measured["requests"] > 0
    entries = facts(appliance, "serving.drilled")
    assert [(one["requests"], one["lost"], one["came_back"]) for one in entries] == [(requests, 0, True)] * len(took)
    assert facts(appliance, "serving.measured")[0]["requests"] == measured["requests"]
    assert list((appliance.home / "runs").glob("trial_*")) == []


def test_what_the_appliance_merged_may_be_served(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    run, merged = embedded["run_id"], tmp_path / "merged"
    digest = appliance.json("model", "merge", run, "--out", str(merged), "--predictions", "0")["artefact_sha256"]
    shown = appliance.json("serve", "start", run, "--primary", f"transformers:{merged}", "--dry-run")
    assert shown["engines"] == {"primary": digest}
    refused = appliance("serve", "start", run, "--primary", f"llama.cpp:{merged}", "--dry-run", expect=11)
    assert "needs one GGUF file" in refused.err
    (merged / "config.json").write_text("{}")
    appliance("serve", "start", run, "--primary", f"transformers:{merged}", "--dry-run", expect=4)
    assert facts(appliance, "serving.refused") == [], "a dry run writes nothing"
