"""A running gateway: a process, engines in processes of their own, and clients that speak HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from appliance.jobs.job import IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import Client, Clients, EngineSpec, GatewayState, Health, Limits, ServeJob
from appliance.values import to_json

STANDIN = Path(__file__).with_name("standin.py")
KEY = "sk-" + "k" * 43
DIGESTS = {"primary": "1" * 64, "fallback": "2" * 64}
QUICK = Health(
    first_token_s=60.0, next_token_s=60.0, answer_s=120.0, probe_s=0.2, patience_s=8.0, start_s=60.0, restart_s=3.0
)
"""Quick where an engine says that it fails; one that a busy machine holds up has not failed."""
STALLS = {"first_token_s": 3.0, "next_token_s": 3.0}
"""Where an engine that says nothing is to be noticed."""
ASK = {"model": "notes", "messages": [{"role": "user", "content": "quokka-7391"}], "max_tokens": 8}


@dataclass
class Running:
    """A gateway that runs."""

    directory: Path
    process: subprocess.Popen[bytes]
    controls: dict[str, Path] = field(default_factory=dict)
    noted: int = 0

    def state(self) -> GatewayState:
        return GatewayState.model_validate_json((self.directory / "state.json").read_bytes())

    @property
    def address(self) -> str:
        return self.state().address

    def client(self, key: str = KEY, **more: Any) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=120, trust_env=False, **more)

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0)

    def ask(self, **changes: Any) -> httpx2.Response:
        with self.client() as client:
            return client.post("/v1/chat/completions", json=ASK | changes)

    def set(self, engine: str, mode: str) -> None:
        """Tell a stand-in how to behave from now on."""
        path = self.controls[engine]
        path.with_suffix(".new").write_text(mode)
        path.with_suffix(".new").rename(path)

    def said(self, engine: str) -> list[str]:
        log = self.controls[engine].with_suffix(".log")
        return log.read_text().split() if log.exists() else []

    def engine(self, name: str) -> Any:
        return next(engine for engine in self.state().engines if engine.name == name)

    def pid(self, name: str, *former: int) -> int:
        """The process of an engine, once it is well and none of the former ones; never 0, whose signals reach us."""
        found: list[int] = []

        def holds() -> bool:
            engine = self.engine(name)
            found.append(engine.pid if engine.well and engine.pid not in former else 0)
            return found[-1] != 0

        self.wait(holds)
        return found[-1]

    def wait(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, (self.directory / "result.json").read_text()
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.02)

    def spool(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "spool.jsonl").read_text().splitlines()][self.noted :]

    def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        return json.loads((self.directory / "result.json").read_text())


def write_clients(path: Path, per_minute: int = 10**6, *more: Client) -> None:
    mine = Client(name="me", key_sha256=hashlib.sha256(KEY.encode()).hexdigest(), per_minute=per_minute)
    path.write_bytes(to_json(Clients(clients=(mine, *more))))


class Starter:
    """Starts gateways in a directory, and ends them."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._started = directory, list[Running]()

    def __call__(self, *engines: EngineSpec, wait: bool = True, prefix: tuple[str, ...] = (), **more: Any) -> Running:
        """A gateway, once all its engines are well; without `engines` two stand-ins."""
        directory = self._directory / f"serving-{len(self._started)}"
        directory.mkdir()
        controls = {}
        if not engines:
            for name in DIGESTS:
                controls[name] = directory / f"{name}.control"
                controls[name].write_text("ok")
            engines = tuple(standin(name, controls[name]) for name in controls)
        write_clients(directory / "clients.json", more.pop("per_minute", 10**6))
        job = ServeJob(
            run_id="run_1",
            serving_id="serving_1",
            model="notes",
            engines=engines,
            clients=str(directory / "clients.json"),
            **({"health": QUICK, "isolation": IsolationSpec(network="preferred")} | more),
        )
        RunDir(directory).write_job(job)
        process = subprocess.Popen(
            [*prefix, sys.executable, "-I", "-m", "appliance.serve", str(directory)],
            env={**os.environ, "APPLIANCE_SUPERVISOR": str(os.getpid())},
            stdout=(directory / "printed").open("wb"),
            stderr=subprocess.STDOUT,
        )
        running = Running(directory, process, controls)
        self._started.append(running)
        running.wait((directory / "state.json").exists)
        if wait:
            running.wait(lambda: all(engine.well for engine in running.state().engines))
        return running

    def end(self) -> None:
        for running in self._started:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One gateway with two stand-ins for the tests of a module, in which the primary is tested only by requests."""
    starter = Starter(tmp_path_factory.mktemp("shared"))
    yield starter(health=QUICK.model_copy(update={"probe_s": 600.0}))
    starter.end()


@pytest.fixture(scope="module")
def stalling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Another one, which gives an engine less time."""
    starter = Starter(tmp_path_factory.mktemp("stalling"))
    yield starter(health=QUICK.model_copy(update={"probe_s": 600.0, **STALLS}))
    starter.end()


@pytest.fixture
def calm(request: pytest.FixtureRequest) -> Running:
    """The shared gateway, or the one for modes in which an engine stalls; its engines well behaved, the spool noted."""
    mode = request.node.callspec.params.get("mode", "") if hasattr(request.node, "callspec") else ""
    running: Running = request.getfixturevalue("stalling" if "stall" in mode else "shared")
    settle(running)
    return running


def settle(running: Running) -> None:
    """Have the engines of a gateway behave well, and note its spool."""
    for name in DIGESTS:
        running.set(name, "ok")
        running.pid(name)
    assert running.ask().headers["x-engine"] == "primary"
    running.noted = 0
    running.noted = len(running.spool())


def standin(name: str, control: Path, **more: Any) -> EngineSpec:
    command = (sys.executable, "-I", str(STANDIN), "{socket}", "{name}", str(control))
    return EngineSpec(name=name, kind="command", model="x", model_sha256=DIGESTS[name], command=command, **more)


@pytest.fixture(scope="session")
def tiny_gguf(built_once: Callable[[str, Callable[[Path], None]], Path], write_tiny_gguf: Callable[..., Path]) -> Path:
    """A random two-layer Llama as a GGUF file."""
    return built_once("tiny-gguf", lambda directory: write_tiny_gguf(directory / "tiny.gguf") and None) / "tiny.gguf"


def llama(name: str, path: Path, **more: Any) -> EngineSpec:
    options = {"context": 512} | more
    return EngineSpec(name=name, kind="llama.cpp", model=str(path), model_sha256=DIGESTS[name], **options)


__all__ = ["ASK", "KEY", "QUICK", "STALLS", "Limits", "Running", "Starter", "llama", "settle", "standin"]
