"""transformers as an engine, the last resort: `plain MODEL SOCKET NAME THREADS`. It writes one answer at a time.

It understands temperature, top_p, max_tokens and stop, and refuses the rest.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import orjson
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

KNOWN = {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "temperature", "top_p", "stop"}


class _Stop:
    """Stops when nobody reads any more."""

    def __init__(self) -> None:
        self.wanted = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.wanted.is_set(), dtype=torch.bool)


class Plain:
    """One model, one answer at a time."""

    def __init__(self, directory: str, name: str) -> None:
        options = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, **options)
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, **options).eval()
        self._name, self._alone = name, asyncio.Lock()

    async def handle(self, request: Request) -> Response:
        """Answer a request with a stream."""
        asked: dict[str, Any] = orjson.loads(await request.body())
        chat = "messages" in asked
        ids = self._encode(asked)
        room = self._model.config.max_position_embeddings - ids.shape[1]
        if set(asked) - KNOWN or room < 1:
            said = "unknown field" if room >= 1 else "the prompt is longer than the available context"
            return Response(orjson.dumps({"error": {"message": said}}), 400)
        return StreamingResponse(self._events(asked, ids, room, chat=chat), media_type="text/event-stream")

    def _encode(self, asked: dict[str, Any]) -> Any:
        if "prompt" in asked:
            return self._tokenizer(asked["prompt"], return_tensors="pt").input_ids
        text = self._tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True, tokenize=False)
        return self._tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids

    async def _events(self, asked: dict[str, Any], ids: Any, room: int, *, chat: bool) -> AsyncGenerator[bytes]:
        most, stop = min(int(asked["max_tokens"]), room), _Stop()
        async with self._alone:
            streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
            options = self._options(asked) | {"max_new_tokens": most, "streamer": streamer, "stopping_criteria": [stop]}
            ended: list[int] = []
            thread = threading.Thread(target=self._generate, args=(ids, options, ended), daemon=True)
            thread.start()
            texts: Iterator[str] = iter(streamer)
            try:
                while (text := await asyncio.to_thread(next, texts, None)) is not None:
                    yield self._event(chat, text, None)
            finally:
                stop.wanted.set()
                await asyncio.shield(asyncio.to_thread(thread.join))
        made = ended[0] - ids.shape[1] if ended else 0
        usage = {"prompt_tokens": ids.shape[1], "completion_tokens": made, "total_tokens": ids.shape[1] + made}
        yield self._event(chat, "", "length" if made >= most else "stop", usage)
        yield b"data: [DONE]\n\n"

    def _generate(self, ids: Any, options: dict[str, Any], ended: list[int]) -> None:
        try:
            with torch.inference_mode():
                ended.append(self._model.generate(ids, tokenizer=self._tokenizer, **options).shape[1])
        finally:
            options["streamer"].end()

    def _options(self, asked: dict[str, Any]) -> dict[str, Any]:
        warm = asked.get("temperature", 1.0) > 0
        stop = {"stop_strings": asked["stop"]} if asked.get("stop") else {}
        chosen = {"temperature": float(asked.get("temperature", 1.0)), "top_p": float(asked.get("top_p", 1.0))}
        return {"do_sample": warm, "pad_token_id": self._tokenizer.eos_token_id} | stop | (chosen if warm else {})

    def _event(self, chat: bool, text: str, reason: str | None, usage: dict[str, int] | None = None) -> bytes:
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if chat else {"text": text}
        kind = "chat.completion.chunk" if chat else "text_completion"
        chunk = {"object": kind, "model": self._name, "choices": [{"index": 0, "finish_reason": reason, **said}]}
        return b"data: " + orjson.dumps(chunk | ({"usage": usage} if usage else {})) + b"\n\n"


def main() -> None:
    """Serve until this process is ended."""
    directory, socket, name, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    plain = Plain(directory, name)
    routes = [Route(f"/v1/{at}", plain.handle, methods=["POST"]) for at in ("chat/completions", "completions")]
    uvicorn.run(Starlette(routes=routes), uds=socket, log_config=None, access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
