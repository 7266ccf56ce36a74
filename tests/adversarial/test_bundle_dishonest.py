"""Sealed directories by a dishonest holder of the keys: everything is signed, and the documents say something else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from appliance.events.catalog import catalog, event
from appliance.export import verify
from appliance.flows.release.sealing import Contents, seal_directory
from appliance.flows.release.told import run_events
from appliance.ledger.ledger import Ledger
from appliance.report import statement
from appliance.report.documents import documents
from appliance.report.evidence import SignedHead
from appliance.watermark.certificate import certificate
from tests.builders import desk_at
from tests.events import facts_of
from tests.unit.export import sealed
from tests.unit.report.checking import check
from tests.unit.report.story import HEX, RUN, WHOLE, Story, build

Documents = dict[str, bytes]
STATEMENT, REPORT, PAGE, CARD = "privacy_statement.json", "report.json", "report.html", "README.md"


@dataclass
class Signer:
    """Holds the keys of a log, and seals whatever it likes."""

    directory: Path
    ledger: Ledger
    released: str
    honest: Documents
    size: int
    made: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def seal(self, change: Callable[[Documents], object]) -> verify.Examination:
        """What the verifier says of a bundle whose documents were changed before everything was signed."""
        written = dict(self.honest)
        change(written)
        name = f"bundle-{next(self.made)}"
        contents = Contents(
            kind="bundle",
            id=name,
            run_id=RUN,
            documents=written,
            entries=[event.index for event in run_events(self.ledger, RUN)],
            facts={"recipient": None, "released_sha256": self.released},
            copies={"adapter": (self.directory / "released", self.released)},
            tree_sizes=[self.size],
        )
        seal_directory(desk_at(self.ledger, sealed.ACTOR), self.directory / name, contents)
        return verify.verify(str(self.directory / name), [str(self.directory / "keys.txt")])


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    """With a log in which the whole story is recorded, about an adapter that is there."""
    directory = tmp_path_factory.mktemp("dishonest")
    released = sealed.make_released(directory / "released")
    certified = certify(released)
    marked = {"released_sha256": released, "certificate_sha256": hashlib.sha256(certified).hexdigest()}
    with sealed.make_ledger(directory / "home") as ledger:
        for type_, _, facts in WHOLE:
            with ledger.transaction(sealed.ACTOR, policy_sha256=HEX[5]) as tx:
                changed = facts | (marked if type_ == "watermark.embedded" else {})
                tx.append(event(type_, facts_of(type_) | changed))
        (directory / "keys.txt").write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
        head = ledger.sign()
        signed = SignedHead(origin="hospital.example/appliance", size=head.size, root=head.root.hex(), note="")
        written = {**documents(RUN, run_events(ledger, RUN), signed), "watermark_certificate.json": certified}
        yield Signer(directory, ledger, released, written, head.size)


def certify(released: str, **more: object) -> bytes:
    """The certificate of the mark; `more` is what an honest one does not say."""
    facts = next(facts for type_, _, facts in WHOLE if type_ == "watermark.embedded")
    names = ("model_sha256", "algorithm_sha256", "escrow_sha256", "commitment", "key_id", "run_id")
    compared = {**{name: facts[name] for name in names}, "suspect_sha256": released, "role": f"owner/{RUN}"}
    predicted = {name: float(score) for name, score in facts["score_predicted"].items()}
    document = json.loads(certificate(compared, "adapter", float(facts["score"]), 1, predicted))
    return bytes(rfc8785.dumps(document | more)) + b"\n"


def refused(seen: verify.Examination, name: str) -> None:
    assert seen.code == verify.TAMPERED, seen.checked
    assert name in " ".join(where for where, _ in seen.problems), seen.problems


def rewrite(written: Documents, name: str, change: Callable[[Any], object]) -> None:
    document = json.loads(written[name])
    change(document)
    written[name] = rfc8785.dumps(document) + b"\n"


def replace(written: Documents, name: str, old: str, new: str) -> None:
    assert old.encode() in written[name], old
    written[name] = written[name].replace(old.encode(), new.encode(), 1)


def test_the_honest_bundle_is_intact(signer: Signer) -> None:
    seen = signer.seal(lambda _: None)
    assert (seen.code, seen.problems, seen.missing) == (verify.OK, [], [])
    assert seen.not_shown == [*verify.NOT_SHOWN]
    assert int(next(line for line in seen.checked if line.startswith("documents")).split()[1]) > 350


# --- names of figures ------------------------------------------------------------------------------------------------


def test_epsilon_cannot_point_at_delta(signer: Signer) -> None:
    def change(document: Any) -> None:
        values = {value["name"]: value for value in document["values"]}
        values["epsilon"].update(fact="/delta", value=values["delta"]["value"])

    refused(signer.seal(lambda written: rewrite(written, STATEMENT, change)), STATEMENT)


def test_no_name_takes_a_figure_of_another(tmp_path: Path) -> None:
    """Each name of the statement with each place that any figure of the documents has, but its own."""
    story = build(WHOLE)
    written = story.render()
    seen = check(tmp_path, story, written)
    assert seen.problems == []
    figures = [*json.loads(written[REPORT])["figures"], *json.loads(written[STATEMENT])["values"]]
    places = {seen.stated(figure, "")[1]: figure for figure in figures}
    tried = 0
    for value in json.loads(written[STATEMENT])["values"]:
        own = seen.stated(value, "")[1]
        assert seen.check_value(value, STATEMENT) == 1
        for place, figure in places.items():
            other = {**figure, "name": value["name"]}
            if verify.SOURCE.sub("", place) == verify.SOURCE.sub("", own):
                continue
            with pytest.raises(verify.Bad, match=value["name"]):
                seen.check_value(other, STATEMENT)
            tried += 1
    assert tried > 4000


JSON: dict[str, tuple[str, Callable[[Any], object]]] = {
    "a member of its own": (STATEMENT, lambda d: d.update(epsilon="0.01")),
    "a number of its own": (STATEMENT, lambda d: d.update(epsilon=1)),
    "a sentence": (STATEMENT, lambda d: d.update(sentence="The adapter has epsilon 0.01.")),
    "a sentence in words": (STATEMENT, lambda d: d.update(mechanism="Epsilon is one hundredth.")),
    "a state": (STATEMENT, lambda d: d.update(state="epsilon 0.01")),
    "a name that says it": (STATEMENT, lambda d: d.update({"epsilon 0.01": "good"})),
    "a value without a place": (STATEMENT, lambda d: d["values"].append({"name": "epsilon", "value": "0.01"})),
    "a value beside its place": (STATEMENT, lambda d: d["values"][0].update(note="0.01")),
    "a root without a size": (STATEMENT, lambda d: d.update(released={"root": "0.01"})),
    "another tree head": (STATEMENT, lambda d: d["ledger"].update(tree_size=3)),
    "a size that is text": (REPORT, lambda d: d.update(tree_size="0.01")),
    "another log": (REPORT, lambda d: d.update(origin="epsilon 0.01")),
    "another run": (REPORT, lambda d: d.update(run_id="epsilon 0.01")),
    "a figure by another name": (REPORT, lambda d: d["figures"][0].update(name="gain")),
    "a finding": (REPORT, lambda d: d["findings"][0].update(topic="Epsilon 0.01")),
    "a tone": (REPORT, lambda d: d["verdict"].update(tone=0)),
    "a flag": (REPORT, lambda d: d["verdict"].update(tone=True)),
    "version 1": (REPORT, lambda d: d.update(schema="appliance.report/1")),
    "version 3": (STATEMENT, lambda d: d.update(schema="appliance.privacy/3")),
}


@pytest.mark.parametrize("case", JSON)
def test_a_json_document_says_nothing_else(case: str, signer: Signer) -> None:
    name, change = JSON[case]
    refused(signer.seal(lambda written: rewrite(written, name, change)), name)


# --- the page --------------------------------------------------------------------------------------------------------

LINES = {
    "a javascript link": '<p><a href="javascript:alert(1)">more</a></p>',
    "a link": '<p><a href="https://evil.example/">more</a></p>',
    "a drawing with a handler": '<svg onload="alert(1)">',
    "without a blank": "<svg/onload=alert(1)>",
    "a handler": '<p onclick="alert(1)">more</p>',
    "a handler in a listed line": '<section id="limits" onfocus="alert(1)" aria-labelledby="limits-title">',
    "srcset": '<img srcset="x.png 1x">',
    "a picture": '<picture><source srcset="x.png"></picture>',
    "refresh": '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "an import": '<style>@import "https://evil.example/x.css";</style>',
    "content": '<style>p::after { content: "epsilon 0.01" }</style>',
    "a background": '<p style="background: url(https://evil.example/x.png)">more</p>',
    "an expression": '<p style="width: expression(alert(1))">more</p>',
    "a frame": '<iframe srcdoc="x"></iframe>',
    "a film": '<video autoplay src="x.mp4"></video>',
    "a template": '<template shadowrootmode="open">epsilon 0.01</template>',
    "a comment": "<!-- epsilon 0.01 -->",
    "hidden text": "<p hidden>epsilon 0.01</p>",
    "a number": "<p>This adapter has epsilon 0.01.</p>",
    "a number without an element": "This adapter has epsilon 0.01.",
    "a number in words": "<p>Epsilon is one hundredth.</p>",
    "a number in references": "<p>&#48;&#46;&#48;&#49;</p>",
    "a number in another script": "<p>epsilon \u0660.\u0660\u0661, \u00bd, \u2160, \u4e00</p>",
    "another blank": "<p >Privacy report of a fine-tuning run</p>",
    "a row without its table": '<tr><th scope="row">Cap of the policy</th><td>0.01</td></tr>',
    "a place in words": "<p>{run.settled /epsilon_charged} is 0.01</p>",
    "a line of the list and more": "</main> epsilon 0.01",
}


@pytest.mark.parametrize("case", LINES)
def test_the_page_has_no_other_line(case: str, signer: Signer) -> None:
    refused(signer.seal(lambda written: replace(written, PAGE, "</main>", f"{LINES[case]}\n</main>")), PAGE)


HEADS = {
    "an import": ("<style>\n", '<style>\n@import "https://evil.example/x.css";\n'),
    "a picture": ("background: #fff;", "background: url(https://evil.example/x.png);"),
    "content": (".tone {", 'data::after { content: "0.01" }\n.tone {'),
    "hidden": ("figure { margin", "tbody { display: none }\nfigure { margin"),
    "no policy": ("default-src 'none'", "default-src *"),
    "refresh": ("<title>", '<meta http-equiv="refresh" content="0">\n<title>'),
    "a title": ("Privacy report</title>", "Epsilon 0.01</title>"),
    "another language": ('lang="en"', 'lang="de"'),
    "another kind of page": ("<!DOCTYPE html>", "<!DOCTYPE html SYSTEM>"),
}


@pytest.mark.parametrize("case", HEADS)
def test_the_page_begins_as_every_page_does(case: str, signer: Signer) -> None:
    old, new = HEADS[case]
    refused(signer.seal(lambda written: replace(written, PAGE, old, new)), PAGE)


DRAWINGS = {
    "text": "<text>epsilon 0.01</text>",
    "a picture": '<image href="x.png"/>',
    "a link": '<a xlink:href="javascript:alert(1)"><path d="M 0 0"/></a>',
    "a page": "<foreignObject><p>0.01</p></foreignObject>",
    "a shape from elsewhere": '<use xlink:href="https://evil.example/x.svg#a"/>',
    "a shape from beside": '<use xlink:href="x.svg#a"/>',
    "another way to refer": '<use href="x.svg#a"/>',
    "a fill from elsewhere": '<path style="fill: url(https://evil.example/x.svg#a)" d="M 0 0"/>',
    "a fill from beside": '<path style="fill: url(x.svg)" d="M 0 0"/>',
    "an animation": '<animate attributeName="href" values="javascript:alert(1)"/>',
    "a handler": '<path onload="alert(1)" d="M 0 0"/>',
    "a handler without a blank": '<path/onload=alert(1) d="M 0 0"/>',
    "a style": "<style>p { display: none }</style>",
    "a script": "<script>alert(1)</script>",
    "a drawing that leaves its place": '<svg style="position: fixed" viewBox="0 0 1 1">',
    "a drawing that is moved": '<svg transform="scale(9)" viewBox="0 0 1 1">',
    "a number": "epsilon 0.01",
    "a description": "<desc>epsilon 0.01</desc>",
    "an escape": '<path style="fill: \\75 rl(x)" d="M 0 0"/>',
    "an attribute without quotes": "<path d=M00/>",
}


@pytest.mark.parametrize("case", DRAWINGS)
def test_a_drawing_is_shapes(case: str, signer: Signer) -> None:
    refused(signer.seal(lambda written: replace(written, PAGE, "</svg>", f"{DRAWINGS[case]}</svg>")), PAGE)


def elements(written: Documents) -> list[str]:
    return [found[0] for found in verify.FIGURE.finditer(written[PAGE].decode())]


def test_no_sentence_takes_a_figure_of_another(tmp_path: Path) -> None:
    """Every figure of the page in the place of the epsilon of the guarantee, the verdict and the budget."""
    story = build(WHOLE)
    written = story.render()
    seen = check(tmp_path, story, written)
    others = {seen.check_figure(next(verify.FIGURE.finditer(element))): element for element in elements(written)}
    page = written[PAGE].decode()
    tried = 0
    for start in ("<p>The adapter of this run", '<tr><th scope="row">Privacy</th>', "<p>In plain words"):
        line = next(line for line in page.split("\n") if line.startswith(start))
        caption = re.findall("<caption>.*</caption>", page[: page.index(line)])[-1:]
        for own in verify.FIGURE.finditer(line):
            for place, element in others.items():
                if place != seen.check_figure(own):
                    changed = verify.FIGURE.sub(seen.check_figure, line.replace(own[0], element, 1))
                    with pytest.raises(verify.Bad):
                        seen.check_lines([*caption, changed])
                    tried += 1
        seen.check_lines([*caption, verify.FIGURE.sub(seen.check_figure, line)])
    assert tried > 1000


def test_a_row_takes_its_figures_from_one_row(signer: Signer) -> None:
    """The score after one change under the name of another, the end of one interval as that of another."""
    for pointer, other in (
        ("/score_predicted/nf4", "/score_predicted/none"),
        ("/comparisons/1/low", "/comparisons/0/low"),
    ):

        def change(written: Documents, pointer: str = pointer, other: str = other) -> None:
            found = {verify.FIGURE.fullmatch(element)[4]: element for element in elements(written)}  # type: ignore[index]
            replace(written, PAGE, found[pointer], found[other])

        refused(signer.seal(change), PAGE)


def test_a_row_takes_its_figures_from_one_entry(tmp_path: Path) -> None:
    """What one run cost, beside the name of another."""
    story = build(WHOLE)
    (failed,) = [event for event in story.events if event.type == "run.failed"]
    facts = {**failed.facts, "run_id": "run_1111tuning11", "epsilon_charged": "0.0100"}
    second = type(failed)(**{**{n: getattr(failed, n) for n in failed.__slots__}, "index": 18, "facts": facts})
    story = Story((*story.events, second))
    written = story.render()
    assert check(tmp_path, story, written).problems == []
    charged = [element for element in elements(written) if "epsilon_charged" in element and "0.0100" in element]
    written[PAGE] = written[PAGE].replace(
        next(e for e in elements(written) if 'value="0.9120"' in e).encode(), charged[0].encode(), 1
    )
    ((where, why),) = check(tmp_path, story, written).problems
    assert (where, why[:5]) == (PAGE, "mixes")


FIGURES: dict[str, tuple[str, str]] = {
    "another value": ('value="3.8794">3.880<', 'value="0.01">0.01<'),
    "another text": (">3.880</data>", ">0.01</data>"),
    "another attribute": ('value="3.8794"', 'value="0.01"'),
    "another title": ('title="entry 9, fact /epsilon_charged, exactly 3.8794"', 'title="epsilon 0.01"'),
    "rounded down": (">3.880</data>", ">3.879</data>"),
    "rounded to less": (">3.880</data>", ">3.9</data>"),
    "another exact value": (", exactly 3.8794", ", exactly 3.1794"),
    "a handler": ('<data class="figure"', '<data onclick="alert(1)" class="figure"'),
    "a style": ('<data class="figure"', '<data style="x" class="figure"'),
    "another look": ('<data class="figure"', '<data class="headline"'),
    "no quotes": ('<data class="figure"', "<data class=figure"),
    "an element inside": (">3.880</data>", "><b>3.880</b></data>"),
    "another entry": ('data-entry="9" data-fact="/epsilon_charged"', 'data-entry="3" data-fact="/epsilon_charged"'),
    "capitals": ("</data>", "</DATA>"),
    "a mark of the verifier's": ("</data>", "</data>\1009.\1"),
}


@pytest.mark.parametrize("case", FIGURES)
def test_a_figure_has_one_form(case: str, signer: Signer) -> None:
    old, new = FIGURES[case]
    refused(signer.seal(lambda written: replace(written, PAGE, old, new)), PAGE)


# --- the model card --------------------------------------------------------------------------------------------------

CARDS = {
    "a number": "This adapter has epsilon 0.01.",
    "a number in words": "Epsilon is one hundredth.",
    "a value of another name": "| epsilon | `0.0000008333333333333333` |",
    "a value of its own": "| epsilon | `0.01` |",
    "a name of its own": "| privacy_loss | `3.8794` |",
    "a row with more": "| epsilon | `3.8794` | 0.01 |",
    "front matter": "epsilon: 0.01",
    "front matter in quotes": 'license: "epsilon 0.01"',
    "a picture": "![epsilon](https://evil.example/0.01.svg)",
    "a link": "[more](javascript:alert(1))",
    "a definition": "[x]: https://evil.example",
    "markup": '<img src="https://evil.example/x.png">',
    "a handler": '<svg onload="alert(1)">',
    "an entity": "epsilon &frac12;",
    "a number in another script": "epsilon \u0661",
    "a heading": "# LoRA adapter with epsilon 0.01",
    "a listed line and more": "## Guarantee 0.01",
    "an escape": "\\u007c epsilon \\u007c `0.01` \\u007c",
}


@pytest.mark.parametrize("case", CARDS)
def test_the_model_card_has_no_other_line(case: str, signer: Signer) -> None:
    refused(signer.seal(lambda written: replace(written, CARD, "## Utility", f"{CARDS[case]}\n\n## Utility")), CARD)


# --- the certificate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"statement": "The marked adapter has epsilon 0.01."},
        {"epsilon": "0.01"},
        {"detected": "epsilon 0.01"},
        {"keys_tested": 0},
        {"role": "owner/another"},
        {"suspect_sha256": "0" * 64},
        {"algorithm_sha256": "0" * 64},
    ],
)
def test_the_certificate_says_nothing_else(more: dict[str, object], tmp_path: Path) -> None:
    """Its digest stands in an entry, which the signer wrote too."""
    written = certify(HEX[11], **more)
    story = build(WHOLE).but("watermark.embedded", certificate_sha256=hashlib.sha256(written).hexdigest())
    seen = check(tmp_path, story, {**story.render(), "watermark_certificate.json": written})
    seen.check_certificate()
    assert {where for where, _ in seen.problems} == ({"watermark_certificate.json"} if more else set())


# --- other files, and the list ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["SUMMARY.md", "summary.html", "json.py", "adapter/README.md", "adapter/x.py", "adapter/a/x.json"],
)
def test_no_other_file_speaks(name: str, signer: Signer) -> None:
    refused(signer.seal(lambda written: written.update({name: b"epsilon 0.01\n"})), "manifest.json")


def test_the_list_is_the_one_that_the_verifier_knows(signer: Signer) -> None:
    for change in (lambda data: data + b"<p>epsilon 0.01</p>\n", lambda data: data[:-1], lambda _: b""):
        refused(signer.seal(lambda written, c=change: written.update({verify.WORDING: c(written[verify.WORDING])})),
                verify.WORDING)  # fmt: skip


def as_old(written: Documents) -> None:
    """What version 1 looked like: no list, fewer names in the statement, and one for each figure of the report."""
    since = (*statement.RUN, *statement.MODEL, *statement.MARK, *statement.GAIN)

    def change(document: Any) -> None:
        document["schema"] = document["schema"].replace("/2", "/1")
        if "values" in document:
            document["values"] = [value for value in document["values"] if value["name"] not in since]
        for figure in document.get("figures", ()):
            figure["name"] = figure.get("fact", figure.get("field"))[1:].replace("/", ".")

    written.pop(verify.WORDING)
    for name in (REPORT, STATEMENT):
        rewrite(written, name, change)


def test_without_the_list_it_is_old_and_says_so(signer: Signer) -> None:
    """Words of version 1 are not compared, and that is printed. Names must at least be like what they point to."""
    seen = signer.seal(as_old)
    assert (seen.code, seen.problems) == (verify.OK, [])
    assert f"not shown {verify.OLD}" in [*verify.report(seen)]
    assert verify.OLD in verify.document(seen)["not_shown"]

    def change(document: Any) -> None:
        values = {value["name"]: value for value in document["values"]}
        values["epsilon"].update(fact="/delta", value=values["delta"]["value"])

    def old(written: Documents) -> None:
        as_old(written)
        rewrite(written, STATEMENT, change)

    refused(signer.seal(old), STATEMENT)
    refused(signer.seal(lambda written: written.pop(verify.WORDING)), REPORT)


ACTIVE = ("a javascript link", "a drawing with a handler", "without a blank", "a handler", "srcset", "a picture")
ACTIVE += ("refresh", "an import", "a background", "an expression", "a frame", "a film")


@pytest.mark.parametrize("case", ACTIVE)
def test_nor_does_an_old_page_run_or_load(case: str, signer: Signer) -> None:
    def old(written: Documents) -> None:
        as_old(written)
        replace(written, PAGE, "</main>", f"{LINES[case]}\n</main>")

    refused(signer.seal(old), PAGE)


# --- the entries -----------------------------------------------------------------------------------------------------


def test_a_run_ends_once(signer: Signer, tmp_path: Path) -> None:
    """A second end with a smaller epsilon would let the documents choose."""
    released = sealed.make_released(tmp_path / "released")
    for again in ("run.settled", "run.aborted"):
        with sealed.make_ledger(tmp_path / again / "home") as ledger:
            sealed.record_run(ledger, "run_1", released)
            (ended,) = [entry for entry in run_events(ledger, "run_1") if entry.type == "run.settled"]
            facts = facts_of(again) | ended.facts | {"epsilon_charged": "7.9960"}
            known = catalog()[again].model_fields
            with ledger.transaction(sealed.ACTOR, policy_sha256=ended.policy_sha256) as tx:
                tx.append(event(again, {name: value for name, value in facts.items() if name in known}))
            sealed.export(ledger, tmp_path / again, "run_1")
            (tmp_path / "keys.txt").write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
        seen = verify.verify(str(tmp_path / again / "bundle"), [str(tmp_path / "keys.txt")])
        assert seen.code == verify.TAMPERED
        assert any("a second time" in why for _, why in seen.problems), seen.problems
