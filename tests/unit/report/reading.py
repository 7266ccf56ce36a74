"""Reading a rendered page as a stranger would: elements, visible text, and where each value says it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}
UNSEEN = {"style", "title", "desc", "head"}


@dataclass
class Value:
    """A `data` element: a figure, or the name under which one stands."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page:
    """What a page shows."""

    values: list[Value] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: str = ""
    ids: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Refuses what is not nested well."""

    def __init__(self) -> None:
        super().__init__()
        self.page, self.stack = Page(), list[str]()
        self.value: Value | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        found = {name: value or "" for name, value in attrs}
        self.page.tags.append((tag, found))
        self.page.ids += [found["id"]] if "id" in found else []
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "data":
            assert self.value is None
            self.value = Value(tag, found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> closes another element"
        if self.value is not None and tag == self.value.tag:
            self.page.values.append(self.value)
            self.value = None

    def handle_data(self, data: str) -> None:
        if self.value is not None:
            self.value.text += data
        elif not UNSEEN & set(self.stack):
            self.page.words += data


def read(html: bytes) -> Page:
    """The page, if it is well formed."""
    text = html.decode()
    assert text.startswith("<!DOCTYPE html>")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.stack
    return reader.page


# --- a page as its sections, for tests of what it says ---------------------------------------------------------------


def text(html: str) -> str:
    """What is read in a piece of a page."""
    return " ".join(unescape(re.sub("<[^>]*>", "", html)).split())


def section(html: bytes, anchor: str) -> str:
    """A section of a page."""
    (found,) = re.findall(f'<section id="{anchor}".*?</section>', html.decode(), re.DOTALL)
    return str(found)


def paragraphs(html: bytes, anchor: str) -> list[str]:
    """Its paragraphs."""
    return [text(found) for found in re.findall("<p[ >].*?</p>", section(html, anchor), re.DOTALL)]


def rows(html: bytes, anchor: str) -> list[list[str]]:
    """The rows of its tables."""
    bodies = re.findall("<tbody>(.*?)</tbody>", section(html, anchor), re.DOTALL)
    found = [row for body in bodies for row in re.findall("<tr>(.*?)</tr>", body, re.DOTALL)]
    return [[text(cell) for cell in re.findall("<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in found]


def verdict(html: bytes) -> tuple[str, str, dict[str, tuple[str, str]]]:
    """Tone and words of the headline; tone and words of each line."""
    shown = section(html, "verdict")
    (tone,) = re.findall('class="verdict ([a-z]+)"', shown)
    tones = re.findall('<span class="tone ([a-z]+)">', shown)
    lines = zip(rows(html, "verdict"), tones, strict=True)
    return tone, paragraphs(html, "verdict")[0], {row[0]: (tone, row[2]) for row, tone in lines}
