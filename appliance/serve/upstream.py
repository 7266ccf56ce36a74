"""One request to one engine: its chunks, each in time and each checked, or the reason why it failed.

Each request has a connection of its own, spoken with h11 over asyncio's streams: a connection to a Unix socket
is cheap, and a client with pools, hooks and locks took a third of the gateway's time for every token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import h11
import orjson

from appliance.jobs.serve import Health
from appliance.serve import chunks
from appliance.serve.asked import Asked
from appliance.serve.faults import EngineFailed

MOST_BYTES = 1 << 20
"""Of one event. An engine that sends more without an end sends no chunks."""
AT_ONCE = 1 << 16
"""Bytes that are read at once."""


async def answer(
    socket: str, asked: Asked, rules: Health, waiting: set[asyncio.Timeout]
) -> AsyncGenerator[dict[str, Any]]:
    """Ask an engine; the chunks of its answer, the last one with the reason of its end or its usage.

    Args:
      socket: of the engine.
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
    async with aclosing(_events(socket, asked)) as batches:
        while True:
            try:
                async with asyncio.timeout_at(min(deadline, last)) as limit:
                    waiting |= set() if begun else {limit}
                    batch = await anext(batches, None)
            except TimeoutError:
                raise EngineFailed("no next token" if begun else "no first token") from None
            finally:
                waiting.discard(limit)
            if batch is None:
                raise EngineFailed("ended early")
            for data in batch:
                if data == b"[DONE]":
                    if not ended:
                        raise EngineFailed("ended early")
                    return
                chunk = chunks.read(data, asked.endpoint, asked.body["model"])
                ended = ended or any(choice["finish_reason"] for choice in chunk["choices"])
                yield chunk
                if chunks.begins(chunk):
                    deadline, begun = loop.time() + rules.next_token_s, True


async def _events(socket: str, asked: Asked) -> AsyncGenerator[list[bytes]]:
    """Read the data of the events of a stream, as many at once as have come. Raises as `answer` does."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        raise EngineFailed("refused") from None
    connection = h11.Connection(h11.CLIENT)
    try:
        _send(connection, writer, asked)
        response = await _response(connection, reader)
        pieces = _pieces(connection, reader)
        if response.status_code != 200:
            raise chunks.refusal(response.status_code, await _whole(pieces))
        kind = next((value for name, value in response.headers if name == b"content-type"), b"")
        if not kind.startswith(b"text/event-stream"):
            raise EngineFailed("garbled")
        async for batch in _split(pieces):
            yield batch
    except (h11.RemoteProtocolError, OSError):
        raise EngineFailed("ended early") from None
    finally:
        writer.transport.abort()


def _send(connection: h11.Connection, writer: asyncio.StreamWriter, asked: Asked) -> None:
    body = orjson.dumps(asked.body)
    headers = {"host": "engine", "content-type": "application/json", "connection": "close"}
    headers["content-length"] = str(len(body))
    request = h11.Request(method="POST", target=f"/v1/{asked.endpoint}", headers=[*headers.items()])
    for event in (request, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Response:
    while not isinstance(event := connection.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(AT_ONCE))
    return event


async def _pieces(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """Read a body, each time all of it that has come."""
    while True:
        piece = bytearray()
        while isinstance(event := connection.next_event(), h11.Data):
            piece += event.data
        if piece:
            yield bytes(piece)
        if event is not h11.NEED_DATA:
            return
        connection.receive_data(await reader.read(AT_ONCE))


async def _split(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[list[bytes]]:
    """Split a stream at its empty lines. In JSON no line end stands bare, so carriage returns are only dropped."""
    rest = b""
    async for piece in pieces:
        *events, rest = (rest + piece.replace(b"\r", b"")).split(b"\n\n")
        if len(rest) > MOST_BYTES:
            raise EngineFailed("garbled")
        if batch := [data for event in events if (data := _data(event))]:
            yield batch


async def _whole(pieces: AsyncGenerator[bytes]) -> bytes:
    found = b""
    async for piece in pieces:
        found += piece
        if len(found) > MOST_BYTES:
            break
    return found


def _data(event: bytes) -> bytes:
    lines = [line for line in event.split(b"\n") if line and not line.startswith(b":")]
    if not all(line.startswith(b"data:") for line in lines):
        raise EngineFailed("garbled")
    return b"\n".join(line[5:].strip() for line in lines)
