"""Conversations through a base model's chat template: the text, and which of it the model would have written.

A template is a program of the model's publisher. Most extend a conversation turn by turn; then each turn is what was
added for it. Some rewrite earlier turns (Qwen3 drops the reasoning of all but the last answer): then the whole is
rendered once, and the answers are found in it because a rendering of other contents shows where contents stand. Some
refuse a conversation, such as one with a system message. Which shapes a template carries is tried on public words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from appliance.train.seams import Piece

Parts = tuple[tuple[str, str], ...]

SHAPES: dict[str, Parts] = {
    "one turn": (("user", "Is it cold?"), ("assistant", "It is.")),
    "several turns": (
        ("user", "Is it cold?"), ("assistant", "It is."), ("user", "And windy?"), ("assistant", "A little."),
    ),
    "a system message": (("system", "Be brief."), ("user", "Is it cold?"), ("assistant", "It is.")),
    "two messages in a row": (("user", "Hello."), ("user", "Is it cold?"), ("assistant", "It is.")),
    "an answer first": (("assistant", "Good morning."), ("user", "Is it cold?"), ("assistant", "It is.")),
    "a tool": (
        ("user", "Is it cold?"), ("assistant", "I ask."), ("tool", "3 degrees"), ("assistant", "It is."),
    ),
}  # fmt: skip
"""Public conversations, one for each shape that records may have."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def carries(self, shape: str) -> bool:
        """Tell whether conversations of one of `SHAPES` can be told apart into what is and is not supervised."""
        pieces = self.fill(SHAPES[shape])
        answers = [text for role, text in SHAPES[shape] if role == "assistant"]
        trained = "".join(text for text, supervised in pieces or () if supervised)
        return pieces is not None and all(answer in trained for answer in answers)

    def fill(self, parts: Parts) -> list[Piece] | None:
        """Render a conversation, or give None where the template refuses it or hides where its contents are."""
        found = self._by_turns(parts)
        return found if found is not None else self._whole(parts)

    def _by_turns(self, parts: Parts) -> list[Piece] | None:
        pieces: list[Piece] = []
        done = ""
        for end, (role, _) in enumerate(parts, start=1):
            if role != "assistant" and end < len(parts):
                continue
            closed = self._render(parts[:end], prompt=False)
            opened = self._open(parts[:end]) if role == "assistant" else done
            if opened is None or closed is None or not opened.startswith(done) or not closed.startswith(opened):
                return None
            pieces += [(opened[len(done) :], False), (closed[len(opened) :], role == "assistant")]
            done = closed
        return pieces

    def _open(self, parts: Parts) -> str | None:
        """Render what the model is given before the last message: of a first message, what the template puts there."""
        if len(parts) > 1:
            return self._render(parts[:-1], prompt=True)
        around = self._skeleton(parts)
        return around[0] if around else None

    def _whole(self, parts: Parts) -> list[Piece] | None:
        answers = [place for place, (role, _) in enumerate(parts) if role == "assistant"]
        between, ending = self._skeleton(parts), self._skeleton(parts[: answers[-1] + 1]) if answers else None
        text = self._render(parts, prompt=False)
        if text is None or between is None or ending is None:
            return None
        found = _fitting(text, between, parts) or self._find_rewritten(text, between, parts, answers[-1])
        if found is None:
            return None
        between, contents = found
        pieces: list[Piece] = []
        closing = ""  # of the answer before: written by the model too
        for place, (role, _) in enumerate(parts):
            lead = between[place][len(closing) :]
            asked = self._asked(parts, place, between, contents) if place == answers[-1] else len(lead)
            pieces += [(closing, True), (lead[:asked], False), (lead[asked:], True)]
            pieces.append((contents[place], role == "assistant"))
            closing = _common(between[place + 1], ending[-1]) if role == "assistant" else ""
        return [*pieces, (closing, True), (between[-1][len(closing) :], False)]

    def _find_rewritten(
        self, text: str, between: list[str], parts: Parts, last: int
    ) -> tuple[list[str], list[str]] | None:
        """Find answers of which the template keeps the end, or writes the blanks otherwise: each up to what follows.

        Returns:
          The texts before, between and behind the contents, and the contents, as they stand in `text`.
        """
        opened = self._render(parts[:last], prompt=True) or ""
        leads: list[str] = []
        contents: list[str] = []
        at = 0
        for place, (role, said) in enumerate(parts):
            lead = between[place]
            if place == last and not text.startswith(lead, at) and text.startswith(opened):
                lead = opened[at:]  # what it puts there where an answer has nothing of the kind, as an empty reasoning
            begin = at + len(lead)
            content = _content(text[begin:], role, said, between[place + 1], parts[place + 1 :])
            if not text.startswith(lead, at) or content is None:
                return None
            leads, contents, at = [*leads, lead], [*contents, content], begin + len(content)
        return ([*leads, between[-1]], contents) if text[at:] == between[-1] else None

    def _asked(self, parts: Parts, place: int, between: list[str], contents: list[str]) -> int:
        """Count how much of what stands before the last answer the model is given: the rest it writes itself."""
        before = "".join(fixed + content for fixed, content in zip(between, contents[:place], strict=False))
        opened = self._render(parts[:place], prompt=True)
        lead = between[place]
        if opened is None or not opened.startswith(before) or not lead.startswith(opened[len(before) :]):
            return len(lead)
        return len(opened) - len(before)

    def _skeleton(self, parts: Parts) -> list[str] | None:
        """List the texts before, between and behind the contents, from a rendering of contents that stand out."""
        marks = [f"\ue000{place}\ue001" for place in range(len(parts))]
        rest = self._render(tuple((role, mark) for (role, _), mark in zip(parts, marks, strict=True)), prompt=False)
        found: list[str] = []
        for mark in marks:
            if rest is None or rest.count(mark) != 1:
                return None
            before, rest = rest.split(mark)
            found.append(before)
        return None if rest is None else [*found, rest]

    def _render(self, parts: Sequence[tuple[str, str]], *, prompt: bool) -> str | None:
        if not parts:
            return ""
        messages = [{"role": role, "content": text} for role, text in parts]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a template is a stranger's program and fails in every way
            return None


def _common(one: str, other: str) -> str:
    """Give the beginning that two texts have in common."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _fitting(text: str, between: list[str], parts: Parts) -> tuple[list[str], list[str]] | None:
    """Give the contents as the template wrote them, as they are or without blanks around them; None for neither."""
    for contents in ([text for _, text in parts], [text.strip() for _, text in parts]):
        if "".join(fixed + content for fixed, content in zip(between, [*contents, ""], strict=True)) == text:
            return between, contents
    return None


def _content(text: str, role: str, said: str, behind: str, rest: Parts) -> str | None:
    """Find the content that a text begins with: what was said, of an answer perhaps its end alone, but for blanks."""
    if role != "assistant":
        return next((content for content in (said, said.strip()) if text.startswith(content)), None)
    then = behind + (rest[0][1].strip() if rest and rest[0][0] != "assistant" else "")
    end = text.find(then) if rest else len(text) - len(then)
    found, original = "".join(text[: max(end, 0)].split()), "".join(said.split())
    return text[:end] if found and end >= 0 and original.endswith(found) else None


def probe(tokenizer: Any) -> dict[str, bool]:
    """Try which of `SHAPES` the tokenizer's chat template carries; nothing if it has none."""
    template = ChatTemplate(tokenizer)
    return {shape: template.carries(shape) for shape in SHAPES} if tokenizer.chat_template else {}
