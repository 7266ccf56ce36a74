"""An engine and what watches it: its process, its places, its breaker, and a question of one token.

A server that answers "healthy" may be dead inside, so health is a token that it generates. The question has a place of
its own at the engine, which no request takes; while answers come, none is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from appliance.isolation import interpreter
from appliance.jobs.job import IsolationSpec
from appliance.jobs.serve import EngineSpec, EngineState, Health
from appliance.serve import commands, upstream
from appliance.serve.asked import Asked
from appliance.serve.breaker import Breaker
from appliance.serve.faults import EngineFailed, Fault
from appliance.serve.gate import Gate

POLL_S, STARTING_S = 0.05, 0.25
PAUSES_S = (0.2, 1.0, 5.0, 30.0)
"""Before a process that ended is started again: if it was well, and after one, two or more starts in vain."""


class Engine:
    """One engine.

    Args:
      spec: which.
      rules: when it counts as failed.
      isolation: what its sandbox must reach.
      scratch: directory for its socket and its temporary files; its path is short.
      changed: called when it is taken out of service or taken back.
    """

    def __init__(
        self, spec: EngineSpec, rules: Health, isolation: IsolationSpec, scratch: Path, changed: Callable[[], None]
    ) -> None:
        self.spec, self._rules, self._isolation, self._changed = spec, rules, isolation, changed
        self.breaker, self.gate = Breaker(rules), Gate(spec.slots)
        self.waiting: set[asyncio.Timeout] = set()
        self._scratch, self.socket = scratch / spec.name, str(scratch / f"{spec.name}.sock")
        self._told = scratch / f"{spec.name}.network"
        self._process: subprocess.Popen[bytes] | None = None
        self._started, self._tries, self._spawned_at, self._token_at = 0, 0, 0.0, 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def state(self) -> EngineState:
        """Say how it is."""
        alive = self._process is not None and self._process.poll() is None
        return EngineState(
            name=self.spec.name,
            well=self.breaker.well,
            pid=self._process.pid if alive and self._process else 0,
            network=self._told.read_text() if self._told.exists() else "",
            opened=self.breaker.opened,
            started=self._started,
        )

    def start(self) -> None:
        """Start its process, and watch it from now on."""
        self._scratch.mkdir(mode=0o700)
        self._spawn()
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._probe())]

    async def stop(self) -> None:
        """End its process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process:
            _end(self._process)

    def speak(self) -> None:
        """Note that a token came: it need not be asked for one."""
        self._token_at = asyncio.get_running_loop().time()

    def succeed(self) -> None:
        """Note that it answered a request."""
        self.breaker.succeed()

    def fail(self, *, gone: bool = False) -> None:
        """Note that it failed; whoever waits for a place is sent to another when that takes it out."""
        if not self.breaker.fail(gone=gone):
            return
        self.gate.shut()
        for limit in tuple(self.waiting):  # requests without a first token need not wait any longer either
            with contextlib.suppress(RuntimeError):  # it ran out a moment ago
                limit.reschedule(asyncio.get_running_loop().time())
        self._changed()

    def _spawn(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        network = str(self._isolation.network)
        words = ("appliance.serve.tether", str(os.getpid()), network, str(self._told))
        self._process = subprocess.Popen(
            interpreter.module(*words, *commands.command(self.spec, self.socket)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # servers print what they are asked
            stderr=subprocess.DEVNULL,
            cwd=interpreter.DIRECTORY,
            env=commands.environment(self.spec, self._scratch),
            start_new_session=True,
        )
        self._started, self._tries = self._started + 1, self._tries + 1
        self._spawned_at = asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        """Start the process anew when it ended, or when no token has come from it for long."""
        while True:
            await asyncio.sleep(POLL_S)
            now = asyncio.get_running_loop().time()
            if self.breaker.well:
                self._tries = 0
            if self._process is None or self._process.poll() is not None:
                self.fail(gone=True)
                _end(self._process)
                await asyncio.sleep(PAUSES_S[min(self._tries, len(PAUSES_S) - 1)])
            elif not self.breaker.well and self._silent(now):
                _end(self._process)
            else:
                continue
            self._spawn()

    def _silent(self, now: float) -> bool:
        """Whether no token came from its process for longer than it may take, to the first one or to another."""
        if self._token_at > self._spawned_at:
            return now - self._token_at > self._rules.restart_s
        return now - self._spawned_at > self._rules.start_s

    async def _probe(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            if not (self.breaker.well and now - self._token_at < self._rules.probe_s):
                await self._ask()
            await asyncio.sleep(self._rules.probe_s if self.breaker.well else min(STARTING_S, self._rules.probe_s))

    async def _ask(self) -> None:
        body = {"model": self.spec.name, "prompt": "a", "max_tokens": 1, "stream": True}
        asked = Asked(endpoint="completions", body=body, stream=True, usage=False)
        try:
            async for _ in upstream.answer(self.socket, asked, self._rules, set()):
                pass
        except (EngineFailed, Fault):
            return self.fail()
        self.speak()
        if self.breaker.prove():
            self._changed()


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """End an engine with whatever it started: vLLM has several processes."""
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
