"""The catalogue: what an event may state, what is told of it, and that every pointer to a fact leads to one."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import appliance.report
from appliance.events.catalog import catalog, event, resolves, types
from appliance.events.event import Event, LeafInvalid, Told
from appliance.export import verify
from appliance.values import Private
from tests.events import facts_of
from tests.unit.report.story import RUN, WHOLE, build

LEAF = {"/index", "/time", "/type", "/subject", "/policy_sha256", "/software/version", "/software/sha256"}


@pytest.mark.parametrize("type_", catalog())
def test_an_event_is_whole_and_well_typed_or_is_not(type_: str) -> None:
    facts = facts_of(type_)
    made = event(type_, facts)
    assert made.facts() == facts
    assert made.type == type_
    with pytest.raises(LeafInvalid):
        event(type_, facts | {"unknown": 1})
    for name in facts:
        with pytest.raises(LeafInvalid) as refused:
            event(type_, facts | {name: Private("Ms Quillfeather")})
        assert "Quillfeather" not in f"{refused.value!r} {refused.value.__cause__!r}"
        with pytest.raises(LeafInvalid, match=name):
            event(type_, {other: fact for other, fact in facts.items() if other != name})


@pytest.mark.parametrize("type_", catalog())
def test_what_it_is_about_and_what_it_opens_are_facts_of_it(type_: str) -> None:
    kind = catalog()[type_]
    for name in filter(None, (kind.about, kind.opens)):
        assert name in facts_of(type_)
    assert (kind.subject.__get__(event(type_, facts_of(type_))) is not None) == bool(kind.about)
    assert type_ == type_.lower()
    assert type_.count(".") == 1
    assert kind.__doc__


def test_what_is_told_where() -> None:
    with pytest.raises(LeafInvalid, match=r"there is no event no\.such"):
        event("no.such", {})
    assert set(types(Told.BUNDLE)) - set(types(Told.REPORT)) == {"ledger.created", "ledger.rekeyed"}
    assert set(types(Told.REPORT)) - set(types(Told.BUNDLE)) == {"watermark.keyed", "watermark.started"}
    assert not set(types(Told.BUNDLE)) & {"data.sealed", "run.checkpointed", "bundle.exported", "report.built"}
    assert types(charges=True) == tuple(t for t in catalog() if "epsilon_charged" in facts_of(t))


# --- pointers ---------------------------------------------------------------------------------------------------------


def rules() -> Iterator[tuple[str, str]]:
    """(type, pointer) of every rule of the verifier, and of what it compares with a certificate."""
    found: Any = verify.RULES
    if not isinstance(found[0], str):  # named tuples
        for rule in found:
            yield from ((rule.left, rule.a), (rule.right, rule.b))
        return
    left = right = ""
    kinds: list[str] = []
    for word in found:
        if "/" not in word:
            kinds = [*kinds, word][-2:]
            left, right = kinds if len(kinds) == 2 else ("", "")
            continue
        first, second = (re.split("<=|=", word) * 2)[:2]
        yield from ((left, first), (right, second))
        kinds = []


def test_every_pointer_of_the_verifiers_rules_leads_to_a_fact() -> None:
    found = list(rules())
    assert len(found) > 60
    for type_, pointer in found:
        known = pointer.removeprefix("^") in LEAF if pointer[0] == "^" else resolves(type_, pointer)
        assert known, (type_, pointer)


def test_every_entry_and_fact_that_the_verifier_names_exists() -> None:
    text = Path(verify.__file__).read_text()
    named = set(re.findall(r"\b((?:run|model|policy|watermark|evaluation|audit|bundle|report|ledger)\.[a-z]+)\b", text))
    assert {name for name in named if name not in catalog()} <= {"report.json", "report.html", "ledger.leaf"}
    certified = [pair[-1] for pair in ((p, p.split("=")[-1]) for p in certificate_pairs())]
    assert len(certified) > 8
    for fact in certified:
        assert resolves("watermark.embedded", f"/{fact}"), fact


def certificate_pairs() -> list[str]:
    found: Any = getattr(verify, "CERTIFIED", None) or verify.CERTIFICATE
    pairs = found.items() if isinstance(found, dict) else found
    return [pair if isinstance(pair, str) else "=".join(pair) for pair in pairs]


def literals(tree: ast.AST) -> Iterator[str]:
    """Texts in code that are pointers into facts; what is filled in becomes `*`."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "*" for p in node.values]
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.mark.parametrize("path", sorted(Path(appliance.report.__path__[0]).glob("*.py")), ids=lambda path: path.name)
def test_every_pointer_in_the_report_leads_to_a_fact_or_a_field(path: Path) -> None:
    for text in literals(ast.parse(path.read_text())):
        if re.fullmatch(r"(/[a-z0-9_*]+)+", text) and text not in {"/*", "/origin", "/size", "/root"}:
            assert text in LEAF or any(resolves(type_, text) for type_ in catalog()), text


def test_every_figure_of_a_whole_report_resolves_in_its_own_entry() -> None:
    story = build(WHOLE)
    type_of = {entry.index: entry.type for entry in story.events}
    twin = json.loads(story.render(RUN)["report.json"])
    statement = json.loads(story.render(RUN)["privacy_statement.json"])
    figures = [figure for figure in (*twin["figures"], *statement["values"]) if "fact" in figure]
    assert len(figures) > 120
    for figure in figures:
        assert resolves(type_of[figure["entry"]], figure["fact"]), figure


def test_a_pointer_that_leads_nowhere_is_seen() -> None:
    assert resolves("run.settled", "/epsilon_curve/3/1")
    assert resolves("run.reserved", "/plan/phases/0/values/2")
    assert resolves("watermark.embedded", "/score_predicted/int4_g128")
    for pointer in ("/epsilon", "/plan", "/epsilon_curve/x", "/epsilon_curve/3/2", "/attempts/0"):
        assert not resolves("run.settled", pointer), pointer
    assert issubclass(catalog()["run.settled"], Event)
