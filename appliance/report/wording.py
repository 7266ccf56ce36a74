"""What the documents may say: `wording.txt`, a list of lines. The verifier knows its digest and refuses any other line.

A line of the list is a line of the page with the place of each figure in its stead, `{run.settled /epsilon_charged}`;
a line of the model card; a name or word of the JSON documents; or a name that the privacy statement gives to a figure.
The head of the page, which must begin it, comes first. A new sentence is a new line (CONTRIBUTING.md says how).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files

from markupsafe import Markup

from appliance.errors import ApplianceError
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, Key

WORDING = "wording.txt"
_ROW = re.compile("(/(?:checks|comparisons|epsilon_curve|exports|open|phases|score_predicted|libraries)/)[^/]+")


def placed(part: str | Figure | Key, evidence: Evidence) -> str:
    """Write a part of a sentence; of a figure or key its place, as markup that needs no escaping."""
    if isinstance(part, str):
        return part
    if isinstance(part, Key):
        return Markup("{name of %s}") % place_of(part.entry, part.pointer, evidence)
    return Markup("{%s}") % place_of(part.entry, part.pointer if part.place == "fact" else f"^{part.pointer}", evidence)


def place_of(entry: int, pointer: str, evidence: Evidence) -> str:
    """Name the type of an entry and a pointer into it, whose row of a table or name in an object is `*`."""
    if entry < 0:
        return f"tree head {pointer}"
    kinds = {**{e.index: f"other {e.type}" for e in evidence.others}, **{e.index: e.type for e in evidence.events}}
    general = _ROW.sub(r"\1*", pointer, count=1)
    return f"{kinds[entry]} {general}"


def lines(page: str) -> Iterator[str]:
    """Read the lines of a page after its head, each row of a table with the caption that it stands under."""
    caption = ""
    for line in page.partition("</head>\n")[2].split("\n"):
        caption = line if line.startswith("<caption>") else caption
        yield caption + line if line.startswith(("<tr>", "<thead>")) else line


def check(said: Iterable[str]) -> None:
    """Raise `ApplianceError` for a line that the list does not have: the verifier would refuse the document."""
    listed = {*packaged(WORDING).split("\n")}
    for line in said:
        if line not in listed:
            raise ApplianceError(f"a report would say what {WORDING} does not list: {line}")


@functools.cache
def packaged(name: str) -> str:
    """Read a text file of this package."""
    return (files("appliance.report") / name).read_text(encoding="utf-8")
