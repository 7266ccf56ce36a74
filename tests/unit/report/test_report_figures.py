"""Every value on the page and in the JSON is what its entry states, and no other number is shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from appliance.events.logged import LoggedEvent
from appliance.report.documents import cited, documents
from tests.unit.report.reading import Page, Value, read
from tests.unit.report.story import RUN, Story

# The only digits that are not values of the ledger: names of standards and of a program, and the confidence level.
NAMES = ("SHA-256", "NIST SP 800-226", "RFC 6962", "95 %", "python3")
PARTS = {
    "whole": lambda story: story,
    "reserved": lambda story: story.only("run.reserved"),
    "running": lambda story: story.only("run.reserved", "run.started"),
    "no selftest": lambda story: story.without("audit.selftest"),
    "unmarked": lambda story: story.without("watermark.embedded", "watermark.committed", "watermark.keyed"),
    "unevaluated": lambda story: story.without(
        "evaluation.reserved", "evaluation.started", "evaluation.settled", "policy.activated", "model.imported"
    ),
    "no curve": lambda story: story.without("run.settled"),
}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, story: Story) -> Story:
    """The whole story and parts of it."""
    chosen = PARTS[request.param](story)
    assert isinstance(chosen, Story)
    return chosen


def shown(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def pointed(value: Any, pointer: str) -> Any:
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def leaf(event: LoggedEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("index", "type", "time", "subject", "software", "facts")}


def stated(story: Story, entry: str | None, attributes: dict[str, str]) -> Any:
    if entry is None:
        head = story.head
        return {"/origin": head.origin, "/size": head.size, "/root": head.root}[attributes["data-field"]]
    event = next(event for event in story.events if event.index == int(entry))
    if "data-fact" in attributes:
        return pointed(event.facts, attributes["data-fact"])
    return pointed(leaf(event), attributes["data-field"])


def at_most_four_digits(text: str) -> str:
    """A decimal number with four significant digits, never nearer to zero; other texts as they are."""
    if not re.fullmatch(r"-?\d+\.\d+", text):
        return text
    exact = Decimal(text)
    if len(exact.as_tuple().digits) <= 4:
        return text
    rounded = exact.quantize(Decimal((0, (1,), exact.adjusted() - 3)), ROUND_UP)
    carried = rounded.quantize(Decimal((0, (1,), rounded.adjusted() - 3)), ROUND_UP)  # 0.99999 is 1.000
    return format(carried, "f")


def check(story: Story, page: Page) -> int:
    for value in page.values:
        if value.attributes["class"] == "key":
            stated(story, value.attributes["data-entry"], value.attributes)
            last = value.attributes["data-fact"].rsplit("/", 1)[-1]
            assert value.text == value.attributes["value"] == last.replace("~1", "/").replace("~0", "~")
            continue
        truth = shown(stated(story, value.attributes.get("data-entry"), value.attributes))
        assert value.attributes["value"] == truth, value
        assert value.text == at_most_four_digits(truth), value
        assert value.text == truth or value.attributes["title"].endswith(f", exactly {truth}"), value
    return len(page.values)


def test_every_value_on_the_page_is_what_its_entry_states(part: Story) -> None:
    assert check(part, read(part.render()["report.html"])) > 20


def test_the_walk_sees_a_value_that_was_changed(story: Story) -> None:
    html = story.render()["report.html"]
    for old, new in (
        (b">3.880<", b">1.880<"),
        (b">3.880<", b">3.879<"),
        (b", exactly 3.8794", b", exactly 1.8794"),
        (b'value="3.8794"', b'value="1.8794"'),
        (b'data-entry="35"', b'data-entry="38"'),
    ):
        assert old in html
        with pytest.raises((AssertionError, KeyError)):
            check(story, read(html.replace(old, new, 1)))


def test_no_digit_is_shown_outside_of_a_value(part: Story) -> None:
    words = read(part.render()["report.html"]).words
    for name in NAMES:
        words = words.replace(name, "")
    found = re.search(r".{0,30}\d.{0,30}", words)
    assert found is None, found


def test_the_json_twin_has_the_same_figures_each_as_its_entry_states_it(part: Story) -> None:
    written = part.render()
    twin = json.loads(written["report.json"])
    assert twin["schema"] == "appliance.report/2"
    assert (twin["tree_size"], twin["root"], twin["origin"]) == (part.head.size, part.head.root, part.head.origin)
    places = set()
    for figure in twin["figures"]:
        place = {f"data-{key}": figure[key] for key in ("fact", "field") if key in figure}
        entry = str(figure["entry"]) if "entry" in figure else None
        truth = stated(part, entry, place)
        assert json.dumps(truth) == json.dumps(figure["value"])
        places.add((entry, *place.items()))
    values = [value for value in read(written["report.html"]).values if value.attributes["class"] != "key"]
    on_page = {(v.attributes.get("data-entry"), *_place(v).items()) for v in values}
    assert on_page == places


def _place(value: Value) -> dict[str, str]:
    return {key: value.attributes[key] for key in ("data-fact", "data-field") if key in value.attributes}


def test_the_privacy_statement_points_to_what_it_says(part: Story) -> None:
    statement = json.loads(part.render()["privacy_statement.json"])
    assert statement["schema"] == "appliance.privacy/2"
    for value in statement["values"]:
        assert stated(part, str(value["entry"]), {"data-fact": value["fact"]}) == value["value"]
    names = {value["name"] for value in statement["values"]}
    assert {"unit_of_privacy", "neighbouring_relation", "noise_multiplier"} <= names


def test_every_entry_that_is_shown_is_cited(story: Story) -> None:
    written = story.render()
    indices = set(cited(RUN, story.events, story.head))
    entries = {
        value.attributes["data-entry"]
        for value in read(written["report.html"]).values
        if "data-entry" in value.attributes
    }
    assert {int(entry) for entry in entries} <= indices
    assert indices == {event.index for event in story.events}


def test_entries_that_the_tree_head_does_not_cover_are_left_out(story: Story) -> None:
    late = story.moved("evaluation.settled", story.head.size + 20)
    head = story.head
    page = documents(RUN, late.events, head)["report.html"]
    assert b"0.213" not in page


def test_nothing_runs_and_nothing_is_loaded(part: Story) -> None:
    html = part.render()["report.html"].decode()
    for tag, attributes in read(html.encode()).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "link", "form", "img", "audio", "video"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src", "srcset", "action", "style"):
                assert value.startswith("#") or (name == "style" and "url(" not in value.replace("url(#", "")), value
    assert "@import" not in html
    assert "url(" not in html.replace("url(#", "")
    assert "default-src 'none'" in html


def test_ids_are_unique_and_references_lead_somewhere(story: Story) -> None:
    html = story.render()["report.html"].decode()
    page = read(html.encode())
    assert len(page.ids) == len(set(page.ids))
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', html))
    for reference in references:
        for name in "".join(reference).split():
            assert name in page.ids


def test_tables_have_captions_headings_follow_and_charts_have_titles(story: Story) -> None:
    html = story.render()["report.html"].decode()
    tags = [tag for tag, _ in read(html.encode()).tags]
    assert tags.count("table") == tags.count("caption") >= 15
    assert tags.count("h1") == 1
    assert tags.count("h2") == tags.count("section") == 11
    drawings = re.findall(r"<svg\b.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert 'role="img"' in drawing
        assert "<title id=" in drawing
        assert "<text" not in drawing
    for figure in re.findall(r"</figure>.{0,120}", html, re.DOTALL):
        assert "<table>" in figure


def test_the_same_entries_give_the_same_bytes(story: Story) -> None:
    shuffled = Story(tuple(reversed(story.events)))
    assert story.render_anew() == shuffled.render_anew()


RENDER = """
import importlib.util, hashlib, sys
spec = importlib.util.spec_from_file_location("story", sys.argv[1])
story = importlib.util.module_from_spec(spec)
sys.modules["story"] = story
spec.loader.exec_module(story)
for name, data in sorted(story.build(story.WHOLE).render().items()):
    print(name, hashlib.sha256(data).hexdigest())
"""


def test_the_same_bytes_whatever_the_hash_seed_the_zone_and_the_language(tmp_path: Path) -> None:
    source = str(Path(__file__).with_name("story.py"))
    printed = set()
    for seed, zone, language in (("1", "UTC", "C.UTF-8"), ("77", "Asia/Tokyo", "C")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": language}
        done = subprocess.run([sys.executable, "-c", RENDER, source], env=environment, capture_output=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    assert printed.pop().count(b"\n") == 5


def test_help_does_not_load_the_drawing_library() -> None:
    code = "import sys, appliance.cli.app, appliance.report.documents; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_other_run_is_shown_but_by_id_state_and_charge(story: Story) -> None:
    page = read(story.render()["report.html"])
    other = next(event for event in story.events if event.type == "run.failed")
    places = {v.attributes.get("data-fact") for v in page.values if v.attributes.get("data-entry") == str(other.index)}
    assert places - {None} == {"/run_id", "/epsilon_charged", "/delta"}
