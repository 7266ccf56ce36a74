"""One request to one engine: its chunks, each in time and each checked, or the reason why it failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx2
import orjson

from appliance.jobs.serve import Health
from appliance.serve import chunks
from appliance.serve.asked import Asked
from appliance.serve.faults import EngineFailed

MOST_BYTES = 1 << 20
"""Of one event. An engine that sends more without an end sends no chunks."""
_FOREVER = httpx2.Timeout(None)


def connect(socket: str) -> httpx2.AsyncClient:
    """Make the client of an engine's Unix socket."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    transport = httpx2.AsyncHTTPTransport(uds=socket, limits=limits)
    return httpx2.AsyncClient(transport=transport, base_url="http://engine", timeout=_FOREVER, trust_env=False)


async def answer(
    client: httpx2.AsyncClient, asked: Asked, rules: Health, waiting: set[asyncio.Timeout]
) -> AsyncGenerator[dict[str, Any]]:
    """Ask an engine; the chunks of its answer, the last one with the reason of its end or its usage.

    Args:
      client: of the engine.
      asked: the request.
      rules: how long the engine may take.
      waiting: holds the time limit of this request until its first token, so that it can be cut short.

    Raises:
      EngineFailed: it did not answer in time, or not as it must.
      Fault: it says that the request is wrong.
    """
    loop = asyncio.get_running_loop()
    last = loop.time() + rules.answer_s
    deadline, begun, ended = loop.time() + rules.first_token_s, False, False
    async with aclosing(_events(client, asked)) as events:
        while True:
            try:
                async with asyncio.timeout_at(min(deadline, last)) as limit:
                    waiting |= set() if begun else {limit}
                    data = await anext(events, None)
            except TimeoutError:
                raise EngineFailed("no next token" if begun else "no first token") from None
            finally:
                waiting.discard(limit)
            if data is None:
                raise EngineFailed("ended early")
            if data == b"[DONE]":
                break
            chunk = chunks.read(data, asked.endpoint, asked.body["model"])
            ended = ended or any(choice["finish_reason"] for choice in chunk["choices"])
            yield chunk
            if chunks.begins(chunk):
                deadline, begun = loop.time() + rules.next_token_s, True
    if not ended:
        raise EngineFailed("ended early")


async def _events(client: httpx2.AsyncClient, asked: Asked) -> AsyncGenerator[bytes]:
    """Read the data of the events of a stream. Raises as `answer` does."""
    body, headers = orjson.dumps(asked.body), {"content-type": "application/json"}
    try:
        async with client.stream("POST", f"/v1/{asked.endpoint}", content=body, headers=headers) as response:
            if response.status_code != 200:
                raise chunks.refusal(response.status_code, await _whole(response))
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise EngineFailed("garbled")
            async for event in _split(response):
                if data := _data(event):
                    yield data
    except (httpx2.ConnectError, FileNotFoundError):
        raise EngineFailed("refused") from None
    except (httpx2.HTTPError, httpx2.StreamError, OSError, RuntimeError):  # the last: the client was closed
        raise EngineFailed("ended early") from None


async def _split(response: httpx2.Response) -> AsyncGenerator[bytes]:
    """Split a stream at its empty lines. In JSON no line end stands bare, so carriage returns are only dropped."""
    rest = bytearray()
    async for piece in response.aiter_raw():
        begin = max(0, len(rest) - 1)
        rest += piece.replace(b"\r", b"")
        while (end := rest.find(b"\n\n", begin)) >= 0:
            yield bytes(rest[:end])
            del rest[: end + 2]
            begin = 0
        if len(rest) > MOST_BYTES:
            raise EngineFailed("garbled")


async def _whole(response: httpx2.Response) -> bytes:
    found = b""
    async for piece in response.aiter_raw():
        found += piece
        if len(found) > MOST_BYTES:
            break
    return found


def _data(event: bytes) -> bytes:
    lines = [line for line in event.split(b"\n") if line and not line.startswith(b":")]
    if not all(line.startswith(b"data:") for line in lines):
        raise EngineFailed("garbled")
    return b"\n".join(line[5:].strip() for line in lines)
