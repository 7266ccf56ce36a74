"""The documents name what there is: events, rooms and files."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.events import reference
from appliance.events.catalog import catalog

ROOT = Path(__file__).parents[2]


def test_the_page_of_events_and_the_glossarys_list_are_what_the_code_says() -> None:
    again = "`make docs` writes it again"
    assert (ROOT / "docs" / "spec" / "events.md").read_text() == reference.page(), again
    text = (ROOT / "docs" / "glossary.md").read_text()
    assert text == reference.glossary(text), again
    assert all(f"`{type_}`" in text for type_ in catalog())


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


def test_the_readmes_tree_has_every_room_once() -> None:
    tree = (ROOT / "README.md").read_text().partition("## What is where\n")[2].partition("\npolicies/")[0]
    listed = re.findall(r"(\w+)/ ", tree.partition("appliance/\n")[2])
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "appliance").iterdir() if path.is_dir() and path.name[0] != "_"
    )
