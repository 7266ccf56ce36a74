"""What an engine answers: chunks, each checked and written anew from the fields that are known, and put together."""

from __future__ import annotations

from typing import Any

import orjson

from appliance.serve.asked import Endpoint
from appliance.serve.faults import EngineFailed, Fault

FINISHED = ("stop", "length", "tool_calls", "content_filter")
OBJECTS = {"chat/completions": "chat.completion.chunk", "completions": "text_completion"}
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def read(data: bytes, endpoint: Endpoint, model: str) -> dict[str, Any]:
    """Read a chunk.

    Returns:
      `{"choices": [...], "usage": {...}}`, each only where the engine sent it, with known fields only.

    Raises:
      EngineFailed: it is no chunk, or another model's.
    """
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise EngineFailed("garbled") from None
    if not isinstance(chunk, dict) or "error" in chunk or chunk.get("object") != OBJECTS[endpoint]:
        raise EngineFailed("garbled")
    if chunk.get("model") != model:
        raise EngineFailed("wrong model")
    choices = chunk.get("choices")
    if not isinstance(choices, list) or len(choices) > 1:
        raise EngineFailed("garbled")
    read_one = _chat_choice if endpoint == "chat/completions" else _text_choice
    return {"choices": [read_one(choice) for choice in choices]} | _usage(chunk.get("usage"))


def _chat_choice(choice: Any) -> dict[str, Any]:
    if not isinstance(choice, dict) or not isinstance(choice.get("delta"), dict):
        raise EngineFailed("garbled")
    delta = choice["delta"]
    texts = {name: delta[name] for name in ("role", "content", "reasoning_content", "refusal") if delta.get(name)}
    if not all(isinstance(text, str) for text in texts.values()):
        raise EngineFailed("garbled")
    calls = delta.get("tool_calls")
    if calls:
        texts["tool_calls"] = _calls(calls)
    return {"index": 0, "delta": texts} | _end(choice)


def _calls(calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) and _is_call(call) for call in calls):
        raise EngineFailed("garbled")
    return [{name: call[name] for name in ("index", "id", "type", "function") if name in call} for call in calls]


def _is_call(call: dict[str, Any]) -> bool:
    function = call.get("function", {})
    return (
        isinstance(call.get("index", 0), int)
        and isinstance(function, dict)
        and all(isinstance(text, str | None) for text in function.values())
    )


def _text_choice(choice: Any) -> dict[str, Any]:
    if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        raise EngineFailed("garbled")
    return {"index": 0, "text": choice["text"]} | _end(choice)


def _end(choice: dict[str, Any]) -> dict[str, Any]:
    reason, scores = choice.get("finish_reason"), choice.get("logprobs")
    if reason not in (None, *FINISHED) or not (scores is None or isinstance(scores, dict)):
        raise EngineFailed("garbled")
    return {"logprobs": scores, "finish_reason": reason}


def _usage(usage: Any) -> dict[str, Any]:
    if usage is None:
        return {}
    if not isinstance(usage, dict) or not all(isinstance(usage.get(name), int) for name in COUNTS):
        raise EngineFailed("garbled")
    return {"usage": {name: usage[name] for name in COUNTS}}


def begins(chunk: dict[str, Any]) -> bool:
    """Tell whether a chunk has a token, or the end of the answer; the role alone is neither."""
    return any(
        choice["finish_reason"] or choice.get("text") or {*choice.get("delta", ())} - {"role"}
        for choice in chunk["choices"]
    )


def join(chunks: list[dict[str, Any]], endpoint: Endpoint) -> dict[str, Any]:
    """Put the chunks of a whole answer together: `choices` and, where the engine sent it, `usage`."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    reason = next((choice["finish_reason"] for choice in reversed(choices) if choice["finish_reason"]), None)
    end = {"logprobs": _scores(choices), "finish_reason": reason}
    usage = next(({"usage": chunk["usage"]} for chunk in reversed(chunks) if "usage" in chunk), {})
    if endpoint == "completions":
        return {"choices": [{"index": 0, "text": "".join(one["text"] for one in choices), **end}], **usage}
    return {"choices": [{"index": 0, "message": _message([one["delta"] for one in choices]), **end}], **usage}


def _message(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for name in ("content", "reasoning_content", "refusal"):
        parts = [delta[name] for delta in deltas if name in delta]
        if parts:
            message[name] = "".join(parts)
    calls: dict[int, dict[str, Any]] = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
        whole = calls.setdefault(call.get("index", 0), {"function": {"name": "", "arguments": ""}})
        whole |= {name: call[name] for name in ("id", "type") if call.get(name)}
        for name in ("name", "arguments"):
            whole["function"][name] += (call.get("function") or {}).get(name) or ""
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    elif message["content"] is None:
        message["content"] = ""
    return message


def _scores(choices: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    names = {name for one in found for name, value in one.items() if isinstance(value, list)}
    return {name: [item for one in found for item in one.get(name) or ()] for name in sorted(names)} if found else None


def refusal(status: int, data: bytes) -> Fault | EngineFailed:
    """Understand what an engine answers instead of chunks: the request's fault if it says 400, else its own.

    Its words may quote the request, so they are not passed on.
    """
    if status != 400:
        return EngineFailed(f"http {status}")
    if b"exceed_context_size" in data or b"context length" in data or b"available context" in data:
        message = "prompt and answer together are longer than the model's context"
        return Fault(400, "context_length_exceeded", message, param="messages")
    return Fault(400, "invalid_request", "the engine cannot make sense of the request")
