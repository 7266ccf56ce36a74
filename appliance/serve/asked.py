"""What a client asks: read strictly, and written anew for the engine from the fields that are known.

An engine has fields of its own that would reach beyond a request, such as the scale of adapters or saved slots; a
field that is not listed here is refused and never passed on. Content is text only: an image would be fetched by URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from appliance.jobs.serve import Limits
from appliance.serve.faults import Fault, invalid

Endpoint = Literal["chat/completions", "completions"]
Check = Callable[[Any], bool]
ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 4096


def _number(low: float, high: float) -> Check:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _stop(value: Any) -> bool:
    words = [value] if isinstance(value, str) else value
    return isinstance(words, list) and len(words) <= 4 and all(isinstance(w, str) and 0 < len(w) <= 200 for w in words)


def _is(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


COMMON: Mapping[str, Check] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": _stop,
    "logit_bias": _is(dict),
}
CHAT: Mapping[str, Check] = {
    **COMMON,
    "logprobs": _is(bool),
    "top_logprobs": _whole(0, 20),
    "response_format": _is(dict),
    "tools": _is(list),
    "tool_choice": lambda value: isinstance(value, str | dict),
    "parallel_tool_calls": _is(bool),
}
TEXT: Mapping[str, Check] = {**COMMON, "logprobs": _whole(0, 5)}
OURS = ("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it was understood.

    Attributes:
      endpoint: which one.
      body: what is sent to an engine: always as a stream, with usage.
      stream: whether the client wants one.
      usage: whether the client wants usage at the end of its stream.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    stream: bool
    usage: bool


def read(endpoint: Endpoint, data: bytes, model: str, limits: Limits) -> Asked:
    """Read a request.

    Args:
      endpoint: where it came.
      data: the body.
      model: the name of the one model that is served.
      limits: of an answer.

    Raises:
      Fault: it is not what it must be.
    """
    said = _object(data)
    _require_model(said, model)
    known = CHAT if endpoint == "chat/completions" else TEXT
    body = {"model": model, **_content(endpoint, said)}
    for name, value in said.items():
        if name in OURS or value is None:
            continue
        if name not in known:
            raise invalid(f"the field {_shown(name)} is not known here", _shown(name), "unknown_parameter")
        if not known[name](value):
            raise invalid(f"{name} is not a value that it may have", name, "invalid_value")
        body[name] = value
    body["max_tokens"] = _tokens(said, limits)
    stream, usage = _stream(said)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Asked(endpoint=endpoint, body=body, stream=stream, usage=usage)


def _object(data: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise invalid("the body is not JSON", code="invalid_json") from None
    if not isinstance(said, dict):
        raise invalid("the body is not a JSON object", code="invalid_json")
    return said


def _require_model(said: dict[str, Any], model: str) -> None:
    if not isinstance(said.get("model"), str):
        raise invalid("model is missing", "model", "missing_required_parameter")
    if said["model"] != model:
        raise Fault(404, "model_not_found", f"there is no such model here; there is {model}", param="model")


def _content(endpoint: Endpoint, said: dict[str, Any]) -> dict[str, Any]:
    if endpoint == "completions":
        if not isinstance(said.get("prompt"), str):
            raise invalid("prompt must be one text", "prompt")
        return {"prompt": said["prompt"]}
    messages = said.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise invalid(f"messages must be a list of 1 to {MOST_MESSAGES} messages", "messages")
    return {"messages": [_message(message, place) for place, message in enumerate(messages)]}


def _message(message: Any, place: int) -> dict[str, Any]:
    where = f"messages[{place}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise invalid(f"{where}.content must be text", f"{where}.content")
    written = {"role": message["role"], "content": content}
    kept = (("name", str), ("tool_call_id", str), ("tool_calls", list))
    return written | {name: message[name] for name, kind in kept if isinstance(message.get(name), kind)}


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise invalid(f"{where}.content may have parts of type text only", f"{where}.content")


def _tokens(said: dict[str, Any], limits: Limits) -> int:
    name = "max_completion_tokens" if said.get("max_completion_tokens") is not None else "max_tokens"
    wanted = said.get(name)
    if wanted is None:
        return limits.answer_tokens
    if not _whole(1, limits.answer_tokens)(wanted):
        raise invalid(f"{name} must be 1 to {limits.answer_tokens}", name, "invalid_value")
    return int(wanted)


def _stream(said: dict[str, Any]) -> tuple[bool, bool]:
    if said.get("n") not in (None, 1):
        raise invalid("n must be 1", "n", "invalid_value")
    stream, options = said.get("stream") or False, said.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise invalid("stream must be true or false, stream_options an object", "stream")
    return stream, options.get("include_usage") is True


def _shown(name: str) -> str:
    """Show the name of a field only if it looks like one: anything may be sent by mistake."""
    return name if len(name) <= 40 and name.isascii() and name.replace("_", "").isalnum() else "(not a word)"
