"""Names that try to be HTML, templates, Markdown, YAML, mathematics or SVG are shown as what they are: text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from appliance.report.card import quoted
from tests.unit.report.reading import read
from tests.unit.report.story import COMPARISONS, ISOLATION, RUN, Story
from tests.unit.report.test_report_figures import check

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% for x in () %}",
    "{{ report.__class__.__mro__ }}",
    "</title></svg></data></table><form action=http://evil.example>",
    "$\\frac{1}{0}$ & \\x00 %s {0}",
    "--- \n...\n---\nlicense: mit\n# Not a card",
    "`code` ``` \n```python\nimport os\n```",
    "[link](http://evil.example) ![x](http://evil.example/x.png) <http://evil.example>",
    "key: value # comment, *anchor, !!python/object:os.system",
    "&amp; &#0; &lt;b&gt;",
    "患者记录 \U0001f600 \u202e\u2028\u0085 e\u0301",
    "",
    "a" * 500,
]


@pytest.fixture(params=range(len(HOSTILE)))
def text(request: pytest.FixtureRequest) -> str:
    """One of them."""
    return HOSTILE[request.param]


def named(story: Story, text: str) -> Story:
    """The story with this text wherever an entry holds free text or somebody else's name."""
    rows: list[dict[str, Any]] = [{**row, "name": text} for row in COMPARISONS]
    changed = (
        story.but("policy.activated", name=text)
        .but("model.imported", model_id=text, licence=text, architecture=text, libraries={text or "x": text})
        .but("run.reserved", model_id=text, dataset_id=text)
        .but("run.failed", dataset_id=text, run_id=f"other {text}")
        .but("run.settled", isolation={**ISOLATION, "files": text}, libraries={text or "x/~y": text})
        .but("watermark.embedded", score_predicted={text or "none": "1.0"})
        .but("evaluation.settled", comparisons=rows)
    )
    return Story(tuple(replace(e, subject=text) if e.type == "model.imported" else e for e in changed.events))


def test_hostile_names_stay_text_on_the_page(text: str, story: Story) -> None:
    hostile, plain = named(story, text), story.render()["report.html"]
    page = read(hostile.render()["report.html"])
    assert check(hostile, page) > 50
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in read(plain).tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_hostile_names_stay_text_in_json(text: str, story: Story) -> None:
    written = named(story, text).render()
    twin = json.loads(written["report.json"])
    assert any(figure["value"] == text for figure in twin["figures"])
    json.loads(written["privacy_statement.json"])


def test_hostile_names_stay_text_in_the_model_card(text: str, story: Story) -> None:
    card = named(story, text).render()["README.md"].decode()
    assert card.startswith("---\n")
    front, body = card[4:].split("\n---\n", 1)
    fields = yaml.safe_load(front)
    assert fields["base_model"] == text
    assert fields["library_name"] == "peft"
    assert fields["license"] == "other"
    assert fields["license_name"] == (text or "unknown")
    for trace in ("<script", "<img", "evil.example", "{{", "onmouseover"):
        assert trace not in body
    assert not set("<>[](){}&=!'`*") & set(front)


@pytest.mark.parametrize("value", [*HOSTILE, *map(chr, (0, 7, 10, 13, 0x7F, 0x85, 0xA0, 0xFEFF, 0xFFFD, 0x10FFFF))])
def test_a_quoted_scalar_reads_back(value: str) -> None:
    assert yaml.safe_load(f"a: {quoted(value)}\n") == {"a": value}
    assert quoted(value).isascii()
    assert "\n" not in quoted(value)


@pytest.mark.parametrize("value", ["`", "a`b", "", "\n\n# x", "a | b", "<b>", "[a](b)", "&lt;", "1 2"])
def test_a_value_that_could_be_markup_is_left_out_of_the_model_card(value: str, story: Story) -> None:
    plan = next(dict(event.facts["plan"]) for event in story.events if event.type == "run.reserved")
    card = story.but("run.reserved", plan={**plan, "clipping": value}).render()["README.md"].decode()
    assert "clipping" not in card
    assert "| clipping | `normalised` |" in story.render()["README.md"].decode()


def test_pointers_escape_what_rfc_6901_escapes(story: Story) -> None:
    odd = story.but("run.settled", libraries={"a/b~c": "9.9", "~1": "8.8"})
    page = read(odd.render()["report.html"])
    keys = [value.text for value in page.values if value.attributes["class"] == "key"]
    assert "a/b~c" in keys
    assert "~1" in keys
    check(odd, page)
    twin = json.loads(odd.render()["report.json"])
    assert {"/libraries/a~1b~0c", "/libraries/~01"} <= {figure.get("fact") for figure in twin["figures"]}
    assert RUN in page.values[0].text
