"""`wording.txt` lists what the documents say, all of it and nothing else; the verifier knows it and takes every run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.export import verify
from appliance.report import wording
from tests.unit.report import telling
from tests.unit.report.checking import check
from tests.unit.report.story import COMPARISONS, LIBRARIES, RUN, Story
from tests.unit.report.test_report_figures import PARTS
from tests.unit.report.test_report_hostile import HOSTILE, named

LISTED = telling.FILE.read_bytes()


def test_the_list_is_what_the_documents_say() -> None:
    said, listed = telling.told().decode().split("\n"), LISTED.decode().split("\n")
    again = "; run `python -m tests.unit.report.telling`, read the difference, put its digest into verify.py"
    assert [line for line in said if line not in listed] == [], f"not listed{again}"
    assert [line for line in listed if line not in said] == [], f"said by no run{again}"
    assert said == listed


def test_the_verifier_knows_the_list() -> None:
    assert hashlib.sha256(LISTED).hexdigest() in verify.WORDINGS
    assert len(LISTED) < verify.MAX_DOCUMENT


def test_no_line_of_the_list_has_a_number_of_its_own() -> None:
    """But for names, a level, the one key that was tested, and numbers of versions, pointers and layout."""
    names = ("keys_tested: 1", "SHA-256", "NIST SP 800-226", "RFC 6962", "95 %", "python3", "sha256", "h1", "h2", "h3")
    _, _, lines = LISTED.decode().partition("</head>\n")
    for line in lines.split("\n"):
        words = re.sub(r"\{[^{}]*\}|appliance\.[a-z]+/[12]| = [a-z. ]+/\S+", "", line)
        for name in names:
            words = words.replace(name, "")
        assert re.search(r"\d", words) is None, line
        assert words.isascii()
        assert not any(character.isnumeric() for character in words)


def test_no_line_of_the_list_loads_or_runs() -> None:
    text = LISTED.decode()
    assert verify.ACTIVE.search(text.replace("base-uri 'none'; form-action 'none'", "")) is None
    assert "http:" not in text
    assert "https:" not in text
    assert set(re.findall(r'href="([^"]*)"', text)) == set(re.findall(r'href="(#[a-z]+)"', text))
    tags = {tag.lower() for tag in re.findall(r"</?([a-zA-Z0-9]+)", text)}
    assert tags <= {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "footer", "div", "h1"),
        *("h2", "p", "ul", "li", "a", "span", "figure", "figcaption"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    }
    attributes = {name for tag in re.findall("<[^<>]*>", text) for name in re.findall(r'([a-z-]+)="', tag)}
    page = {"class", "id", "href", "scope", "aria-label", "aria-labelledby", "lang"}
    assert attributes == {*page, "charset", "name", "content", "http-equiv"}


@pytest.mark.parametrize("name", PARTS)
def test_the_verifier_takes_the_documents(name: str, story: Story, tmp_path: Path) -> None:
    part = PARTS[name](story)
    assert isinstance(part, Story)
    seen = check(tmp_path, part, part.render())
    assert (seen.problems, seen.not_shown) == ([], [*verify.NOT_SHOWN])
    assert int(seen.checked[0].split()[1]) > 60


@pytest.mark.parametrize("text", HOSTILE)
def test_the_verifier_takes_documents_with_hostile_names(text: str, story: Story, tmp_path: Path) -> None:
    hostile = named(story, text)
    assert check(tmp_path, hostile, hostile.render()).problems == []


def test_the_verifier_takes_every_kind_of_run(tmp_path: Path, stress_count: object) -> None:
    """A part of them; all of them in full."""
    every = [*telling.stories()]
    chosen = every if stress_count(0, 1) else every[::8]  # type: ignore[operator]
    for story in chosen:
        assert check(tmp_path, story, story.render()).problems == []


def test_what_is_not_listed_cannot_be_reported(story: Story) -> None:
    """A run of a kind that nobody thought of is refused where it is reported, not where it is verified."""
    with pytest.raises(ApplianceError, match="does not list"):
        story.but("evaluation.settled", comparisons=COMPARISONS * 3).render_anew()
    with pytest.raises(ApplianceError, match="does not list"):
        wording.check(["<p>epsilon is small</p>"])


def test_places_have_the_same_name_for_builder_and_verifier(story: Story, tmp_path: Path) -> None:
    """Every figure of the JSON documents, and some that are odd."""
    odd = story.but("run.settled", libraries={**LIBRARIES, "a/b~c": "1", "}{ @1.": "2"})
    evidence = telling.gather(RUN, odd.events, odd.head)
    seen = check(tmp_path, odd, odd.render())
    assert seen.problems == []
    count = 0
    for document in ("report.json", "privacy_statement.json"):
        written = json.loads(odd.render()[document])
        for figure in written.get("figures", written.get("values")):
            place = verify.SOURCE.sub("", seen.stated(figure, document)[1])
            pointer = figure["fact"] if "fact" in figure else f"^{figure['field']}"
            assert place == wording.place_of(figure.get("entry", -1), pointer, evidence)
            count += 1
    assert count > 150
