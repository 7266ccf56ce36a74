"""Which engine answers a request: the first that is well; before the first token another one takes over.

Whatever fails before the first token is tried at another engine, and the client sees nothing but a label. After it the
answer cannot be taken back: it ends with an error that says so. Nothing here is random: engines stand in order.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from appliance.jobs.serve import Health, Limits
from appliance.serve import chunks, upstream
from appliance.serve.asked import Asked
from appliance.serve.engine import Engine
from appliance.serve.faults import EngineFailed, Fault
from appliance.serve.gate import Shut

MOST_ATTEMPTS = 4


@dataclass
class Told:
    """What is said of an answer while it is made.

    Attributes:
      engine: who answers; None before the first token.
      failed: what failed before it, "engine: reason".
      detected_s: seconds from the beginning until the last failure was known, of this request or of one before it.
      tried: how often each engine was tried.
    """

    engine: Engine | None = None
    failed: list[str] = field(default_factory=list)
    detected_s: float = 0.0
    tried: Counter[str] = field(default_factory=Counter)


class Relay:
    """Chooses engines and passes their answers on."""

    def __init__(self, engines: Sequence[Engine], rules: Health, limits: Limits) -> None:
        self.engines, self._rules, self._limits = engines, rules, limits
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Let requests that wait for an engine look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, asked: Asked, told: Told) -> AsyncGenerator[dict[str, Any]]:
        """Give the chunks of an answer, beginning with those up to its first token at once.

        Args:
          asked: the request.
          told: is filled in; its engine stands when the first chunk is given.

        Raises:
          EngineFailed: the engine failed after its first token.
          Fault: no engine answers, or one says that the request is wrong.
        """
        began = asyncio.get_running_loop().time()
        while True:
            engine = await self._choose(told.tried, began)
            told.tried[engine.spec.name] += 1
            try:
                await engine.gate.enter()
            except Shut:
                told.tried[engine.spec.name] -= 1
                told.detected_s = asyncio.get_running_loop().time() - began
                continue
            try:
                async with aclosing(self._attempt(engine, asked, told)) as answer:
                    async for chunk in answer:
                        yield chunk
                return
            except EngineFailed as failure:
                told.failed.append(f"{engine.spec.name}: {failure.reason}")
                told.detected_s = asyncio.get_running_loop().time() - began
                if told.engine is not None:
                    raise
            finally:
                engine.gate.leave()

    async def _attempt(self, engine: Engine, asked: Asked, told: Told) -> AsyncGenerator[dict[str, Any]]:
        mine = replace(asked, body=asked.body | {"model": engine.spec.name})
        held: list[dict[str, Any]] = []
        try:
            async with aclosing(upstream.answer(engine.socket, mine, self._rules, engine.waiting)) as answer:
                async for chunk in answer:
                    engine.speak()
                    held.append(chunk)
                    if told.engine is None and not chunks.begins(chunk):
                        continue
                    told.engine = engine
                    for one in held:
                        yield one
                    held.clear()
        except EngineFailed:
            engine.fail()
            raise
        engine.succeed()

    async def _choose(self, tried: Counter[str], began: float) -> Engine:
        """Choose the engine that was tried least and stands first, of those that are well; wait for one if none is."""
        until = began + self._rules.patience_s
        while True:
            well = [engine for engine in self.engines if engine.breaker.well]
            if tried.total() >= MOST_ATTEMPTS:
                raise Fault(502, "engines_failed", "every engine that was tried failed before its first token")
            if well:
                engine = min(well, key=lambda engine: tried[engine.spec.name])
                if engine.gate.waiting >= self._limits.queue:
                    raise Fault(503, "overloaded", "too many requests wait already", retry_after=1)
                return engine
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                raise Fault(503, "no_engine", "no engine is well", retry_after=5) from None
