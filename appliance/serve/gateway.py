"""The gateway: three endpoints as OpenAI has them, in front of a relay.

Nothing of a request or an answer is written anywhere. What is counted are requests; what is spooled are ids of degraded
answers, engines, and reasons.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from appliance.jobs.serve import ServeJob
from appliance.serve.answering import Answering
from appliance.serve.asked import Endpoint, read
from appliance.serve.clients import Doorkeeper
from appliance.serve.faults import Fault
from appliance.serve.relay import Relay
from appliance.serve.spool import Spool

Handler = Callable[[Request], Awaitable[Response]]


class Gateway:
    """Requests in, answers out, and what is counted meanwhile."""

    def __init__(self, job: ServeJob, relay: Relay, doorkeeper: Doorkeeper, spool: Spool) -> None:
        self.job, self.relay, self.spool = job, relay, spool
        self._doorkeeper = doorkeeper
        self.counts: Counter[str] = Counter()
        self._open, self._busy_s, self._at = 0, 0.0, time.monotonic()
        self._began = int(time.time())

    def app(self) -> Starlette:
        """Make the application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._explained(self._models)),
                Route("/v1/models/{name}", self._explained(self._model)),
                Route("/v1/chat/completions", self._explained(self._chat), methods=["POST"]),
                Route("/v1/completions", self._explained(self._text), methods=["POST"]),
                Route("/{rest:path}", self._explained(self._nothing), methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )

    @property
    def busy_s(self) -> float:
        """Seconds in which requests were open, added up over the requests."""
        self._step(0)
        return self._busy_s

    def _step(self, change: int) -> None:
        now = time.monotonic()
        self._busy_s += self._open * (now - self._at)
        self._open, self._at = self._open + change, now

    def _explained(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                self._doorkeeper.admit(request.headers.get("authorization", ""))
                return await handler(request)
            except Fault as fault:
                self.counts["refused"] += 1
                return refuse(fault)
            except ClientDisconnect:
                self.counts["left"] += 1
                return Response(status_code=499)

        return handle

    async def _health(self, request: Request) -> Response:
        well = any(engine.breaker.well for engine in self.relay.engines)
        first = self.relay.engines[0].breaker.well
        status = "ok" if first else "degraded" if well else "down"
        return Response(orjson.dumps({"status": status}), 200 if well else 503, media_type="application/json")

    async def _models(self, request: Request) -> Response:
        return Response(orjson.dumps({"object": "list", "data": [self._shown()]}), media_type="application/json")

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != self.job.model:
            raise Fault(404, "model_not_found", f"there is no such model here; there is {self.job.model}")
        return Response(orjson.dumps(self._shown()), media_type="application/json")

    async def _nothing(self, request: Request) -> Response:
        raise Fault(404, "unknown_url", "there is nothing here; see /v1/models, /v1/chat/completions, /v1/completions")

    def _shown(self) -> dict[str, Any]:
        engines = [{"name": spec.name, "model_sha256": spec.model_sha256} for spec in self.job.engines]
        about = {"run": self.job.run_id, "serving": self.job.serving_id, "engines": engines}
        shown = {"id": self.job.model, "object": "model", "created": self._began, "owned_by": "appliance"}
        return shown | {"appliance": about}

    async def _chat(self, request: Request) -> Response:
        return await self._answer("chat/completions", request)

    async def _text(self, request: Request) -> Response:
        return await self._answer("completions", request)

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        body = await self._body(request)
        asked = read(endpoint, body, self.job.model, self.job.limits)
        prefix = "chatcmpl-" if endpoint == "chat/completions" else "cmpl-"
        return Counted(self, Answering(self, asked, prefix + secrets.token_hex(12)))

    async def _body(self, request: Request) -> bytes:
        most = self.job.limits.body_bytes
        too_large = Fault(413, "request_too_large", f"a request has at most {most} bytes")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.job.limits.body_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Fault(408, "request_timeout", "the request did not come in time") from None
        return bytes(body)

    def opened(self) -> None:
        """Note that a request was taken."""
        self._step(1)

    def closed(self) -> None:
        """Note that it is over."""
        self._step(-1)


class Counted(Response):
    """An answer that counts as open while it is made."""

    def __init__(self, gateway: Gateway, answering: Answering) -> None:
        super().__init__()
        self._gateway, self._answering = gateway, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. A client that goes away ends the work of the engine too."""
        self._gateway.opened()
        work = asyncio.create_task(self._answering(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._gateway.counts["left"] += 1
        finally:
            work.cancel()
            gone.cancel()
            results = await asyncio.gather(work, gone, return_exceptions=True)
            self._gateway.closed()
        if isinstance(results[0], Exception):
            raise results[0]


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def refuse(fault: Fault) -> Response:
    """Answer with an error object. What is left of the request's body is not read: the connection is closed."""
    headers = fault.headers | ({"connection": "close"} if fault.status in (401, 408, 413) else {})
    return Response(orjson.dumps(fault.body()), fault.status, headers, media_type="application/json")
