"""An engine that does as it is told: `standin.py SOCKET NAME CONTROL`. CONTROL holds a word, read for each request."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

SOCKET, NAME, CONTROL = sys.argv[1], sys.argv[2], Path(sys.argv[3])
TOKENS = ["one ", "two ", "three ", "four "]


def event(endpoint: str, text: str | None, reason: str | None, name: str = NAME) -> bytes:
    chat = "chat" in endpoint
    choice = {"delta": {"content": text} if text else {}} if chat else {"text": text or ""}
    kind = "chat.completion.chunk" if chat else "text_completion"
    chunk = {"object": kind, "model": name, "choices": [{"index": 0, "finish_reason": reason, **choice}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def log(word: str) -> None:
    with CONTROL.with_suffix(".log").open("a") as file:
        file.write(word + "\n")


NO_ANSWERS = {
    "wrong-model": event("completions", "one ", None, "another"),
    "garbage": b'data: {"choices": [\xff\xfe\n\n',
    "not-a-stream": b"<html>" * 100,
    "endless-event": b"x" * (3 << 20),
}


async def say(mode: str, endpoint: str, asked: dict, write) -> None:
    if mode in NO_ANSWERS:
        return await write(NO_ANSWERS[mode].replace(b"text_completion", event(endpoint, "", None).split(b'"')[3]))
    for number in range(10**6 if mode == "endless" else min(asked["max_tokens"], len(TOKENS))):
        if number == 2 and mode == "cut":
            return await write(event(endpoint, "half of a chunk", None)[:40])
        if number == 2 and mode == "stall-later":
            await asyncio.sleep(3600)
        await asyncio.sleep(0.05 if mode in ("slow", "endless") else 0)
        await write(event(endpoint, TOKENS[number % len(TOKENS)], None))
    if mode != "no-end":
        await write(event(endpoint, None, "stop"))
        await write(b"data: [DONE]\n\n")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        endpoint = head.split()[1]
        length = next(
            int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length")
        )
        asked = json.loads(await reader.readexactly(length))
        mode = CONTROL.read_text().strip()
        if asked["max_tokens"] > 1:
            log("asked")
        if mode == "half-chunk":
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nff\r\nda"
            )
            return await writer.drain()
        if mode == "stall":
            await asyncio.sleep(3600)
        if mode.isdigit():
            long = b"the request exceeds the available context size" if mode == "400" else b"SECRET"
            writer.write(f"HTTP/1.1 {mode} X\r\ncontent-length: {len(long)}\r\n\r\n".encode() + long)
            return await writer.drain()
        kind = "text/html" if mode == "not-a-stream" else "text/event-stream"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode())

        async def write(data: bytes) -> None:
            if writer.is_closing() or reader.at_eof():
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()

        await say(mode, endpoint, asked, write)
    except (ConnectionError, asyncio.IncompleteReadError):
        log("gone")
    finally:
        writer.close()


async def main() -> None:
    async with await asyncio.start_unix_server(serve, SOCKET, backlog=4096) as server:
        await server.serve_forever()


asyncio.run(main())
