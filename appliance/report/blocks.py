"""What a report is made of: sections of paragraphs, lists, tables and charts, whose words and figures stay apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from appliance.report.figures import Figure, Key, Sentence

Tone = Literal["good", "caution", "bad", "open"]
"""open: has not been performed, so nothing can be said."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the verdict."""

    topic: str
    tone: Tone
    sentence: Sentence


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    sentence: Sentence
    kind: Literal["paragraph"] = "paragraph"


@dataclass(frozen=True, slots=True)
class Listing:
    """A bulleted list."""

    rows: tuple[Sentence, ...]
    kind: Literal["listing"] = "listing"


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Sentence, ...], ...]
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing (complete inline SVG) of values that a table beside it states in text."""

    caption: str
    svg: str
    kind: Literal["chart"] = "chart"


Block = Paragraph | Listing | Table | Chart


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report under a heading."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report, before it is written as HTML or JSON."""

    headline: Sentence
    tone: Tone
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]

    def sentences(self) -> Iterator[Sentence]:
        """List every sentence that is shown, in order."""
        yield self.headline
        yield from (finding.sentence for finding in self.findings)
        for section in self.sections:
            for block in section.blocks:
                yield from sentences_of(block)

    def figures(self) -> Iterator[Figure]:
        """List every figure that is shown, in order, as often as it is shown."""
        for sentence in self.sentences():
            yield from (part for part in sentence if isinstance(part, Figure))


def sentences_of(block: Block) -> Iterator[Sentence]:
    """List the sentences of one block."""
    if isinstance(block, Paragraph):
        yield block.sentence
    elif isinstance(block, Listing):
        yield from block.rows
    elif isinstance(block, Table):
        for row in block.rows:
            yield from row


def say(*parts: str | Figure | Key) -> Sentence:
    """Make a sentence."""
    return parts


def words(text: str) -> Sentence:
    """Make a sentence without figures."""
    return (text,)


NOT_PERFORMED = words("not performed")


def pairs(caption: str, rows: list[tuple[str, Sentence]], head: tuple[str, str] = ("What", "Value")) -> Table:
    """Make a table of names and values."""
    return Table(caption, head, tuple(((name,), value) for name, value in rows))
