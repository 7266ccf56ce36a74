"""An engine without a model: `rapid.py SOCKET NAME GAP` sends a token every GAP seconds. All else can be measured."""

from __future__ import annotations

import asyncio
import json
import sys

SOCKET, NAME, GAP = sys.argv[1], sys.argv[2], float(sys.argv[3])
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(text: str, reason: str | None, tokens: int = 0) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
    chunk = {"id": "x", "object": "text_completion", "created": 1, "model": NAME, "choices": [choice]}
    return b"data: " + json.dumps(chunk | ({"usage": usage} if reason else {})).encode() + b"\n\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line[15:]) for line in head.splitlines() if line.startswith("content-length:"))
        tokens = json.loads(await reader.readexactly(length))["max_tokens"]
        writer.write(HEAD)
        for _ in range(tokens):
            await asyncio.sleep(GAP)
            send(writer, event("token ", None))
        send(writer, event("", "stop", tokens) + b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main() -> None:
    async with await asyncio.start_unix_server(serve, SOCKET, backlog=1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
