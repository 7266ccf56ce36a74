"""Clients for drills and measurements: requests at given times, whatever answers come, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import h11
import orjson

Outcome = Literal["answered", "cut", "lost", "unlabelled", "refused"]
MOST_S = 300.0
"""For one request; then nobody waits any longer."""


@dataclass(kw_only=True)
class Seen:
    """What a client saw of one request. Times are of the monotonic clock, s.

    Attributes:
      due: when it should have been sent.
      sent: when it was.
      first: when the first token of a stream came; 0 if none did.
      last: when it was over.
      detected_s: as the gateway says: until a failure was known.
    """

    due: float
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    outcome: Outcome = "lost"
    engine: str = ""
    degraded: str = ""
    detected_s: float = 0.0
    status: int = 0


@dataclass(frozen=True)
class Gateway:
    """A gateway to send requests to, with the key of a client."""

    address: str
    key: str

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection. Raises OSError."""
        if self.address.startswith("unix:"):
            return await asyncio.open_unix_connection(self.address.removeprefix("unix:"))
        place = urlsplit(self.address)
        return await asyncio.open_connection(place.hostname, place.port)


async def send_all(to: Gateway, due: Sequence[float], bodies: Sequence[dict[str, Any]]) -> list[Seen]:
    """Send each request when it is due (monotonic, s), and wait until all are over."""
    tasks = []
    for at, body in zip(due, bodies, strict=True):
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        tasks.append(asyncio.create_task(ask(to, body, at)))
    return list(await asyncio.gather(*tasks))


async def ask(to: Gateway, body: dict[str, Any], due: float) -> Seen:
    """Send one request on a connection of its own, and follow its answer."""
    seen, data = Seen(due=due, sent=time.monotonic()), orjson.dumps(body)
    headers = [("host", "gateway"), ("authorization", f"Bearer {to.key}"), ("content-length", str(len(data)))]
    connection = h11.Connection(h11.CLIENT)
    try:
        async with asyncio.timeout(MOST_S):
            reader, writer = await to.connect()
            try:
                head = connection.send(h11.Request(method="POST", target="/v1/completions", headers=headers))
                writer.write((head or b"") + data)
                connection.send(h11.Data(data=data))
                connection.send(h11.EndOfMessage())
                await _follow(connection, reader, seen, stream=body["stream"])
            finally:
                writer.close()
    except (OSError, h11.RemoteProtocolError, orjson.JSONDecodeError, TimeoutError):
        seen.outcome = "unlabelled" if seen.first else "lost"
    seen.last = time.monotonic()
    return seen


async def _follow(connection: h11.Connection, reader: asyncio.StreamReader, seen: Seen, *, stream: bool) -> None:
    """Read an answer to its end. Raises what `ask` catches."""
    rest = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            _label(seen, event)
        elif isinstance(event, h11.Data):
            rest += event.data
            if stream and seen.status == 200:
                rest = _read(seen, rest)
        elif isinstance(event, h11.EndOfMessage):
            break
    if seen.status != 200:
        seen.outcome = "refused" if seen.status < 500 else "lost"
    elif not stream:
        seen.outcome, seen.tokens = "answered", orjson.loads(bytes(rest))["usage"]["completion_tokens"]


def _label(seen: Seen, response: h11.Response) -> None:
    headers = dict(response.headers.raw_items())
    seen.status, seen.outcome = response.status_code, "unlabelled"
    seen.engine, seen.degraded = (headers.get(name, b"").decode() for name in (b"x-engine", b"x-degraded"))
    seen.detected_s = float(headers.get(b"x-detected-ms", b"0")) / 1000


def _read(seen: Seen, rest: bytearray) -> bytearray:
    """Read the whole events of a stream, and leave the rest; a token is a chunk with text."""
    *events, left = rest.split(b"\n\n")
    for event in events:
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            seen.outcome = "answered"
            continue
        chunk = orjson.loads(data)
        if "error" in chunk:
            seen.outcome = "cut"
        elif any(choice.get("text") or choice.get("finish_reason") for choice in chunk["choices"]):
            seen.first = seen.first or time.monotonic()
            seen.tokens += any(choice.get("text") for choice in chunk["choices"])
    return left
