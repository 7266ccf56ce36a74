"""From the columns of a row to the parts of a record, or a reason why not."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from appliance.ingest.sameness import is_blank
from appliance.ingest.source import RowRefused
from appliance.ingest.spec import IngestSpec, Template
from appliance.jobs.record import ROLES, RecordKind

Parts = tuple[tuple[str, str], ...]
Shaper = Callable[[dict[str, Any]], tuple[RecordKind, Parts]]

MAX_KEPT = 256
"""Characters of a kept value; what is longer is a text and not a category."""

_CHAT_ROLES = frozenset(ROLES["chat"])
_NOTHING: tuple[Any, ...] = (None, "", [], "[]", "null")
# The names that collections in the ShareGPT form use.
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}


def shaper(spec: IngestSpec) -> Shaper:
    """Choose the function that turns the columns of a row into a record's kind and parts. It raises `RowRefused`."""
    prompt, completion = Template(spec.prompt or "prompt"), Template(spec.completion or "completion")
    text = Template(spec.text or "text")

    def as_pair(fields: dict[str, Any]) -> tuple[RecordKind, Parts]:
        pair = (("prompt", _fill(prompt, fields)), ("completion", _fill(completion, fields)))
        return "completion", pair

    def as_text(fields: dict[str, Any]) -> tuple[RecordKind, Parts]:
        return "text", (("text", _fill(text, fields)),)

    def as_found(fields: dict[str, Any]) -> tuple[RecordKind, Parts]:
        if "messages" in fields:
            return _as_chat(fields)
        if "conversations" in fields:
            return _as_sharegpt(fields)
        if "prompt" in fields and "completion" in fields:
            return as_pair(fields)
        if "instruction" in fields and "output" in fields:
            return _as_alpaca(fields)
        if "text" in fields:
            return as_text(fields)
        raise RowRefused("has neither messages or conversations, nor prompt and completion, nor text")

    by_shape: dict[str, Shaper] = {
        "messages": _as_chat,
        "sharegpt": _as_sharegpt,
        "alpaca": _as_alpaca,
        "prompt-completion": as_pair,
        "text": as_text,
    }
    return by_shape.get(spec.resolved_shape, as_found)


def unescape(value: Any) -> Any:
    """Turn HTML character references into characters, in every string at any depth but not in keys."""
    if type(value) is str:
        return html.unescape(value) if "&" in value else value
    if type(value) is list:
        return [unescape(part) for part in value]
    if type(value) is dict:
        return {key: unescape(part) for key, part in value.items()}
    return value


def keep_columns(fields: dict[str, Any], columns: tuple[str, ...]) -> Parts:
    """Take (column, value) of the kept columns; one that is missing or null is left out. Raises `RowRefused`."""
    found = [(column, _column(fields, column)) for column in columns if fields.get(column) is not None]
    if any(len(value) > MAX_KEPT for _, value in found):
        raise RowRefused(f"a kept column has more than {MAX_KEPT} characters")
    return tuple(found)


def _fill(template: Template, fields: dict[str, Any]) -> str:
    pieces = template.pieces
    if len(pieces) == 3 and not pieces[0] and not pieces[2]:
        return _require_text(_column(fields, pieces[1]), pieces[1])
    texts = [piece if n % 2 == 0 else _column(fields, piece) for n, piece in enumerate(pieces)]
    # A template whose columns are all blank says nothing about anybody.
    _require_text("".join(texts[1::2]), "', '".join(template.columns))
    return "".join(texts)


def _column(fields: dict[str, Any], column: str) -> str:
    value = fields.get(column)
    if type(value) is str:
        return value
    if value is None:
        raise RowRefused(f"column '{column}' is missing or null")
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    if type(value) is float:
        if abs(value) >= 2.0**53:
            raise RowRefused(f"column '{column}' is a number too large to be kept exactly; write it as text")
        return repr(value)
    raise RowRefused(f"column '{column}' is neither text nor a number")


def _require_text(text: str, name: str) -> str:
    if is_blank(text):
        raise RowRefused(f"'{name}' is empty")
    if "\0" in text:
        raise RowRefused(f"'{name}' holds a NUL character")
    return text


def _as_chat(fields: dict[str, Any]) -> tuple[RecordKind, Parts]:
    messages = fields.get("messages")
    if type(messages) is not list or not messages:
        raise RowRefused("'messages' is not a list of messages")
    _require_nothing_beside(fields, "tools", "functions")
    parts = tuple(_message(message, number) for number, message in enumerate(messages, 1))
    if not any(role == "assistant" for role, _ in parts):
        raise RowRefused("has no message of the assistant, so there is nothing to learn")
    return "chat", parts


def _message(message: Any, number: int) -> tuple[str, str]:
    if type(message) is not dict:
        raise RowRefused(f"message {number} is not an object")
    role, content = message.get("role"), message.get("content")
    if type(role) is not str or role not in _CHAT_ROLES:
        raise RowRefused(f"message {number} has a role that is not one of {', '.join(ROLES['chat'])}")
    if type(content) is not str:
        raise RowRefused(f"message {number} has no text as its content")
    if message.get("weight") not in (None, 1):
        raise RowRefused(f"message {number} has a weight that is not 1: all that the assistant says is learned")
    if any(value is not None for key, value in message.items() if key not in ("role", "content", "weight")):
        # Dropping a tool call or an image silently would train on something other than what was given.
        raise RowRefused(f"message {number} has more than a role and a content")
    return role, _require_text(content, f"content of message {number}")


def _require_nothing_beside(fields: dict[str, Any], *columns: str) -> None:
    """Refuse a conversation that had more before it than its messages: without that the answers mean something else."""
    for column in columns:
        if fields.get(column) not in _NOTHING:
            raise RowRefused(f"has '{column}' beside it, which would be left out")


def _as_sharegpt(fields: dict[str, Any]) -> tuple[RecordKind, Parts]:
    turns = fields.get("conversations")
    if type(turns) is not list or not turns:
        raise RowRefused("'conversations' is not a list of turns")
    _require_nothing_beside(fields, "tools", "functions")
    told = fields.get("system")
    opening = [] if told in _NOTHING else [{"role": "system", "content": told}]
    return _as_chat({"messages": [*opening, *(_turn(turn, number) for number, turn in enumerate(turns, 1))]})


def _turn(turn: Any, number: int) -> dict[str, Any]:
    if type(turn) is not dict:
        raise RowRefused(f"turn {number} is not an object")
    speaker = turn.get("from")
    role = _SHAREGPT_ROLES.get(speaker) if type(speaker) is str else None
    if role is None:
        raise RowRefused(f"turn {number} is from none of {', '.join(_SHAREGPT_ROLES)}")
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {**others, "role": role, "content": turn.get("value")}


def _as_alpaca(fields: dict[str, Any]) -> tuple[RecordKind, Parts]:
    """Join the instruction and, two lines below, its input where there is one; the answer is `output`."""
    _require_nothing_beside(fields, "system", "history")
    instruction = _require_text(_column(fields, "instruction"), "instruction")
    given = fields.get("input")
    if given is not None and type(given) is not str:
        raise RowRefused("'input' is not a text")
    prompt = f"{instruction}\n\n{_require_text(given, 'input')}" if given and not given.isspace() else instruction
    return "completion", (("prompt", prompt), ("completion", _require_text(_column(fields, "output"), "output")))
