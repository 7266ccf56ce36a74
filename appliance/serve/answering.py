"""One answer on its way to the client: whole or as a stream, labelled with engine, model, run, and whether degraded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import Send

from appliance.serve import chunks
from appliance.serve.asked import Asked
from appliance.serve.faults import EngineFailed, Fault
from appliance.serve.relay import Told

if TYPE_CHECKING:
    from appliance.serve.gateway import Gateway

KINDS = {"chat/completions": "chat.completion", "completions": "text_completion"}
CUT = "the engine failed after the first token: this answer is incomplete, ask again"


class Answering:
    """Makes one answer and sends it.

    Args:
      gateway: counts and spools.
      asked: the request.
      answer_id: names the answer.
    """

    def __init__(self, gateway: Gateway, asked: Asked, answer_id: str) -> None:
        self._gateway, self._asked, self._id = gateway, asked, answer_id
        self._told, self._created, self._labelled = Told(), int(time.time()), False

    async def __call__(self, send: Send) -> None:
        """Make it and send it. Raises nothing: what fails is told to the client."""
        self._send = send
        try:
            if self._asked.stream:
                await self._stream()
            else:
                await self._whole()
        except Fault as fault:
            self._account("refused" if fault.status < 500 else "lost")
            await self._refuse(fault)
        except EngineFailed:
            self._account("cut")
            await self._cut()
        except TimeoutError:  # the client does not take what it is sent
            self._gateway.counts["left"] += 1

    async def _whole(self) -> None:
        """Send a whole answer. Nothing was sent before, so an engine that fails midway is no loss."""
        while True:
            try:
                async with aclosing(self._gateway.relay.answer(self._asked, self._told)) as answer:
                    found = [chunk async for chunk in answer]
                break
            except EngineFailed:
                self._told.engine = None
        body = self._frame(KINDS[self._asked.endpoint]) | chunks.join(found, self._asked.endpoint)
        self._account()
        await self._respond(200, orjson.dumps(body | {"appliance": self._about()}), self._labels())

    async def _stream(self) -> None:
        begun = False
        async with aclosing(self._gateway.relay.answer(self._asked, self._told)) as answer:
            async for chunk in answer:
                if not begun:
                    self._account()
                    await self._begin(200, b"text/event-stream", self._labels())
                    begun = True
                for event in self._events(chunk):
                    await self._push(event)
        await self._push(b"data: [DONE]\n\n", last=True)

    def _events(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        """Write a chunk as the client wants it: labels with the first one, usage only where it was asked for."""
        frame = self._frame(chunks.OBJECTS[self._asked.endpoint])
        if not self._labelled:
            frame["appliance"], self._labelled = self._about(), True
        usage = chunk.get("usage") if self._asked.usage else None
        if chunk["choices"]:
            yield b"data: " + orjson.dumps(frame | {"choices": chunk["choices"]}) + b"\n\n"
        if usage:
            yield b"data: " + orjson.dumps(frame | {"choices": [], "usage": usage}) + b"\n\n"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._gateway.job.model}

    def _reason(self) -> str:
        """Say why the answer is degraded; empty where it is not."""
        if self._told.failed:
            return "retried"
        return "" if self._told.engine is self._gateway.relay.engines[0] else "fallback"

    def _about(self) -> dict[str, Any]:
        """Say who answers: engine, the digest of its model, run and serving."""
        job, engine = self._gateway.job, self._told.engine
        known = {"engine": engine.spec.name, "model_sha256": engine.spec.model_sha256} if engine else {}
        about = known | {"run": job.run_id, "serving": job.serving_id}
        return about | ({"degraded": self._reason()} if engine and self._reason() else {})

    def _labels(self) -> dict[str, str]:
        about = self._about() | {"request-id": self._id}
        if self._told.detected_s:
            about["detected-ms"] = str(round(1000 * self._told.detected_s))
        return {f"x-{name.replace('_', '-')}": value for name, value in about.items()}

    def _account(self, ended: str = "answered") -> None:
        """Count the answer, and spool it where it is degraded; before its first byte is sent, or when it is cut."""
        self._gateway.counts[ended] += 1
        reason = {"answered": self._reason(), "refused": ""}.get(ended, ended)
        if reason:
            name = self._told.engine.spec.name if self._told.engine and ended != "lost" else ""
            self._gateway.counts["degraded"] += ended == "answered"
            self._gateway.spool.note(self._id, reason, name, tuple(self._told.failed))  # type: ignore[arg-type]

    async def _refuse(self, fault: Fault) -> None:
        body = fault.body() | {"appliance": self._about()}
        await self._respond(fault.status, orjson.dumps(body), fault.headers | self._labels())

    async def _cut(self) -> None:
        body = {"error": {"message": CUT, "type": "server_error", "param": None, "code": "answer_cut"}}
        await self._push(b"data: " + orjson.dumps(body | {"appliance": self._about()}) + b"\n\n", last=True)

    async def _respond(self, status: int, body: bytes, labels: dict[str, str]) -> None:
        await self._begin(status, b"application/json", labels | {"content-length": str(len(body))})
        await self._push(body, last=True)

    async def _begin(self, status: int, kind: bytes, labels: dict[str, str]) -> None:
        headers = [(name.encode(), value.encode()) for name, value in labels.items()]
        headers += [(b"content-type", kind), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _push(self, data: bytes, *, last: bool = False) -> None:
        async with asyncio.timeout(self._gateway.job.limits.send_s):
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
