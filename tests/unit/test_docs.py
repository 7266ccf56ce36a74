"""The documents name what there is: events, rooms and files."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.ledger.events import EVENTS

ROOT = Path(__file__).parents[2]


def test_the_glossary_lists_every_event_and_no_other() -> None:
    _, section = (ROOT / "docs" / "glossary.md").read_text().split("## Events")
    assert set(re.findall(r"`([a-z]+\.[a-z]+)`", section)) - {"events.py"} == set(EVENTS)


def test_files_that_the_glossary_and_contributing_name_are_there() -> None:
    named = re.findall(r"\| (`.*`) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    named += re.findall(r"^\| (`.*?`) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    paths = {path for cell in named for path in re.findall(r"`([\w/.]+(?:/|\.py|\.md))`", cell)}
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not any((ROOT / at / path).exists() for at in ("appliance", ""))] == []


def test_contributing_lists_every_room() -> None:
    listed = set(re.findall(r"^\| `([\w.]+)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    there = {path.name for path in (ROOT / "appliance").iterdir() if path.name[0] != "_"}
    assert listed == there
