"""Whose data it is: what is taken for the same person, record and dataset, and what deliberately is not.

The second list is the one in docs/life-of-a-record.md.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataInvalid, UsageError
from appliance.ingest.fingerprints import LONG_PASSAGE, overlap
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.sameness import is_blank, words
from appliance.ingest.spec import IngestSpec
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.record import Record
from tests.conftest import MEDIA

KEY = b"k" * 32
NAME = "Zoë Müller-Ångström"
WIDE = {i: i + 0xFEE0 for i in range(0x21, 0x7F)}


def read(path: Path, content: str | list[dict[str, Any]], **spec: Any) -> tuple[list[Record], bytes]:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content)
    ingestion = Ingestion([path], IngestSpec(**{"format": "jsonl", **spec}), KEY)
    return list(ingestion), ingestion.fingerprints


SPELLINGS = {
    "decomposed": unicodedata.normalize("NFD", NAME),
    "composed": unicodedata.normalize("NFC", NAME),
    "full width": NAME.translate(WIDE),
    "upper case": NAME.upper(),
    "soft hyphen": "Zo\u00adë Mül\u00adler-Ångström",
    "zero width space": "Zoë\u200b Müller\u200b-Ångström",
    "zero width joiner": "Z\u200doë Müller-Ångström",
    "word joiner": "Zoë\u2060 Müller-Ångström",
    "byte order mark": f"\ufeff{NAME}",
    "right-to-left mark": f"\u200f{NAME}\u200e",
    "variation selector": "Zoë\ufe0f Müller-Ångström",
    "tag characters": f"{NAME}\U000e0041\U000e007f",
    "blanks around": f"  {NAME}\t\n",
    "two blanks": NAME.replace(" ", "  "),
    "no-break space": NAME.replace(" ", "\u00a0"),
    "no blank": NAME.replace(" ", ""),
    "escaped": "Zo&euml; M&uuml;ller-&Aring;ngstr&#246;m",
    "Angstrom sign": NAME.replace("Å", "\u212b"),
    "ligature": NAME,
    "mark between base and accent": "Zoe\u034f\u0308 Müller-Ångström",
    "control character": "Zo\x01ë Müller-Ångström",
    "delete": f"{NAME}\x7f",
    "control character of Latin-1": f"\x80{NAME}",
    "mark of an annotation": f"\ufff9{NAME}\ufffb",
    "no character": f"{NAME}\ufdd0",
    "pattern without dots": NAME.replace(" ", "\u2800"),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_one_person_has_one_share_however_the_name_is_written(tmp_path: Path, spelling: str) -> None:
    unit = UnitOfPrivacy(kind="subject", key="who", max_records=2)
    rows = [{"who": who, "text": f"note {n}"} for n, who in enumerate([NAME, spelling] * 3)]
    records, prints = read(tmp_path / "a", rows, unit=unit)
    assert len(records) == 2
    assert len({record.unit for record in records}) == 1
    _, others = read(tmp_path / "b", [{"who": spelling, "text": "other"}], unit=unit)
    assert overlap(prints, others)


@pytest.mark.parametrize("names", [["Işık", "IŞIK", "ışık"], ["İlker", "ilker", "ILKER", "ılker"]])
def test_upper_case_of_the_dotless_i_is_the_same_person(tmp_path: Path, names: list[str]) -> None:
    unit = UnitOfPrivacy(kind="subject", key="who", max_records=1)
    records, _ = read(tmp_path / "a", [{"who": name, "text": f"note {n}"} for n, name in enumerate(names)], unit=unit)
    assert len(records) == 1


def test_other_people_stay_others(tmp_path: Path) -> None:
    unit = UnitOfPrivacy(kind="subject", key="who", max_records=1)
    names = ["Zoe Müller", "Zoë Mueller", "Zoë Müller", "Zoë M.", 17, "017", "1 8"]
    records, _ = read(tmp_path / "a", [{"who": name, "text": "t"} for name in names], unit=unit)
    assert len(records) == len(names)


@pytest.mark.parametrize("name", ["", " ", "\u200b\u200d", "\u00ad \ufeff", "\u3164", "\x7f", "\u2800", "&nbsp;"])
def test_nobody_is_named_by_what_is_not_seen(tmp_path: Path, name: str) -> None:
    unit = UnitOfPrivacy(kind="subject", key="who", max_records=1)
    with pytest.raises(DataInvalid):
        read(tmp_path / "a", [{"who": name, "text": "t"}], unit=unit)
    with pytest.raises(DataInvalid):
        read(tmp_path / "a", [{"who": "w", "text": name}])
    assert is_blank(name)


SHORT = [{"q": f"Frage {n}?", "a": f"Größe {n}"} for n in range(5)]  # far below what makes a cell long
Q, A = SHORT[0].values()
PAIR = {"prompt": "q", "completion": "a"}
PRESENTATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "another template": (SHORT, {"prompt": "Q: {q}", "completion": "A: {a} (end)"}),
    "as text": (SHORT, {"text": "{q} {a}"}),
    "one column only": (SHORT, {"text": "a"}),
    "other names": ([{"x": r["q"], "y": r["a"]} for r in SHORT], {"prompt": "x", "completion": "y"}),
    "other order": ([{"a": r["a"], "q": r["q"]} for r in SHORT], PAIR),
    "trailing blanks": ([{k: f"{v} \n" for k, v in r.items()} for r in SHORT], PAIR),
    "decomposed": ([{k: unicodedata.normalize("NFD", v) for k, v in r.items()} for r in SHORT], PAIR),
    "upper case": ([{k: v.upper() for k, v in r.items()} for r in SHORT], PAIR),
    "columns joined by a blank": ([{"t": f"{r['q']} {r['a']}"} for r in SHORT], {"text": "t"}),
    "columns joined by a line": ([{"t": f"{r['q']}\n\n{r['a']}"} for r in SHORT], {"text": "t"}),
    "columns joined, the other first": ([{"t": f"{r['a']} {r['q']}"} for r in SHORT], {"text": "t"}),
    "a column more": ([{"n": n, **r} for n, r in enumerate(SHORT)], PAIR),
    "as a chat": (
        [{"messages": [{"role": "user", "content": r["q"]}, {"role": "assistant", "content": r["a"]}]} for r in SHORT],
        {},
    ),
    "as a chat with a system message": (
        [
            {
                "messages": [
                    {"role": "system", "content": "Answer."},
                    {"role": "user", "content": r["q"]},
                    {"role": "assistant", "content": r["a"]},
                ]
            }
            for r in SHORT
        ],
        {},
    ),
    "one row of many": ([{"q": "other", "a": "thing"}, SHORT[3]], PAIR),
}


@pytest.mark.parametrize("name", PRESENTATIONS)
def test_the_same_content_has_one_budget_however_it_is_presented(tmp_path: Path, name: str) -> None:
    rows, columns = PRESENTATIONS[name]
    _, first = read(tmp_path / "a", SHORT, **PAIR)
    _, second = read(tmp_path / "b", rows, **columns)
    assert overlap(first, second)


def test_one_record_written_twice_is_one(tmp_path: Path) -> None:
    row = {"text": "Größe: fünf  Fuß"}
    same = [{"text": unicodedata.normalize("NFD", row["text"])}, {"text": "GRÖSSE:\u200b fünf fuss "}]
    assert len(read(tmp_path / "a", [row, *same])[0]) == 1


LETTER = "Dear colleague,\n\nthank you for sending us " + "Ms Example, whose heart beats too fast at night. " * 4
LETTER += "\n\nShe takes 5 mg of it. " + "Her sister has had the same complaint for years now, as we were told. " * 3
SPLITS = ["file", "paragraph", "line", "30-tokens", "400-tokens"]


@pytest.mark.parametrize("one", SPLITS)
@pytest.mark.parametrize("other", SPLITS)
def test_a_letter_is_known_under_every_split(tmp_path: Path, one: str, other: str) -> None:
    content = f"{LETTER}\nShort line.\n"
    prints = [
        read(tmp_path / "a.txt", content, format="text", unit=UnitOfPrivacy(split=split))[1] for split in (one, other)
    ]
    assert overlap(*prints)
    assert overlap(prints[0], read(tmp_path / "b", [{"id": 7, "letter": LETTER}], text="letter")[1])


@pytest.mark.parametrize("end", ["\r", "\r\n", "\u2028", "\x85", "&#10;", "&#13;&#10;"])
def test_a_paragraph_is_known_inside_another_text_whatever_ends_its_lines(tmp_path: Path, end: str) -> None:
    lines = [
        "She takes 5 mg of it in the morning, after breakfast,",
        "10 mg at noon and, since the middle of last week,",
    ]
    lines += ["none in the evenings any more, as it kept her awake."]
    assert max(map(len, lines)) < LONG_PASSAGE
    _, known = read(tmp_path / "a", [{"text": " ".join(lines)}])
    letter = end.join(["Dear colleague,", "", *lines, "", "Yours"])
    assert overlap(known, read(tmp_path / "b", [{"text": letter}])[1])


DIFFERENT = {
    "other words": "The heart of the patient is beating too quickly when it is night.",
    "another language": "Das Herz der Patientin schlägt nachts zu schnell, wie sie berichtet hat.",
    "a typing mistake": "The patient's hart beats too fast at night, as she told us herself.",
    "accents left out": "The patient's coeur beats too fast at night, as she told us herself.",
    "letters of another script": "The p\u0430tient's heart beats too fast at night, as she told us herself.",
    "other quotation marks": "The patient\u2019s heart beats too fast at night, as she told us herself.",
    "numbers written otherwise": "The patient's heart beats too fast at night, as she told us herself. 5.0 mg",
    "a part of the text": "The patient's heart beats too fast at night",
    "words added": "Note: the patient's heart beats too fast at night, as she told us herself. End.",
}
"""Name in the documentation, and what is not recognised as the text below."""
ORIGINAL = {
    "accents left out": "The patient's cœur béats too fast at night, as she told us herself.",
    "numbers written otherwise": "The patient's heart beats too fast at night, as she told us herself. 5 mg",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_deliberately_not_recognised(tmp_path: Path, name: str) -> None:
    text = ORIGINAL.get(name, "The patient's heart beats too fast at night, as she told us herself.")
    prints = [read(tmp_path / str(n), [{"text": t}])[1] for n, t in enumerate((text, DIFFERENT[name]))]
    assert not overlap(*prints)


def test_short_cells_and_system_messages_alone_are_not_recognised(tmp_path: Path) -> None:
    system = {"role": "system", "content": "You are a careful assistant of this hospital and answer in its name."}

    def chat(n: int) -> dict[str, Any]:
        said = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
        return {"messages": [system, *said]}

    assert not overlap(read(tmp_path / "a", [chat(1)])[1], read(tmp_path / "b", [chat(2)])[1])

    def sharegpt(n: int) -> dict[str, Any]:
        """The same conversation, in the other form."""
        speakers = {"system": "system", "user": "human", "assistant": "gpt"}
        said = chat(n)["messages"]
        return {"conversations": [{"from": speakers[m["role"]], "value": m["content"]} for m in said]}

    assert not overlap(read(tmp_path / "a", [sharegpt(1)])[1], read(tmp_path / "b", [sharegpt(2)])[1])
    one, other = ([{"q": f"question {n}", "a": "yes"}] for n in (1, 2))
    assert not overlap(read(tmp_path / "a", one, **PAIR)[1], read(tmp_path / "b", other, **PAIR)[1])


@pytest.mark.parametrize(
    "row",
    [
        {"role": "system", "p": "what is there?"},
        {"about": {"role": "system"}, "p": "what is there?"},
        {"messages": [{"role": "system", "content": ORIGINAL["accents left out"]}], "p": "what is there?"},
    ],
    ids=["a column called role", "an object called system", "messages that are not used"],
)
def test_a_row_does_not_hide_its_cells_by_calling_itself_a_system_message(tmp_path: Path, row: dict[str, Any]) -> None:
    text = ORIGINAL["accents left out"]
    _, known = read(tmp_path / "a", [{"text": text}])
    _, again = read(tmp_path / "b", [{**row, "c": text}], prompt="p", completion="c")
    assert overlap(known, again)


def test_an_answer_is_known_though_the_system_message_says_it_too(tmp_path: Path) -> None:
    text = ORIGINAL["accents left out"]
    said = [{"role": role, "content": content} for role, content in (("system", text), ("user", "go on"))]
    chat = {"messages": [*said, {"role": "assistant", "content": text}]}
    assert overlap(read(tmp_path / "a", [{"text": text}])[1], read(tmp_path / "b", [chat])[1])


def test_the_list_of_what_is_not_recognised_is_in_the_documentation() -> None:
    page = (MEDIA.parent / "docs" / "life-of-a-record.md").read_text()
    listed = re.search(r"(?s)## What is not recognised\n(.*?)(\n## |\Z)", page)
    assert listed is not None
    bullets = re.findall(r"(?m)^\* \*\*(.+?)\*\*", listed[1])
    assert sorted(bullets) == sorted([*DIFFERENT, "short cells alone", "system messages alone"])


@pytest.mark.parametrize("text", ["e\u0301" * 3, "ﬁne", "İstanbul", "ǅ", "\u1e9b\u0323", "½", "㎏", "Ω\u0345"])
def test_the_rule_is_stable(text: str) -> None:
    once = "".join(words(text))
    assert "".join(words(once)) == once
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text)) == [once]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("file", ["one two.\nthree\n\nfour five six seven\n\neight"]),
        ("paragraph", ["one two.\nthree", "four five six seven", "eight"]),
        ("line", ["one two.", "three", "four five six seven", "eight"]),
        ("3-tokens", ["one two.", "three", "four five six", "seven\n\neight"]),
        ("8-tokens", ["one two.\nthree\n\nfour five six seven", "eight"]),
        ("900-tokens", ["one two.\nthree\n\nfour five six seven\n\neight"]),
    ],
)
def test_a_text_is_split_as_told(tmp_path: Path, split: str, expected: list[str]) -> None:
    content = "\n\none two.\nthree\n \n\nfour five six seven\n\n\neight\n"
    records, _ = read(tmp_path / "a.txt", content, format="text", unit=UnitOfPrivacy(split=split))
    found = [record.parts[0][1] for record in records]
    assert [re.sub(r"\n\s*\n", "\n\n", text) for text in found] == expected


def subjects(paths: list[Path], rule: str) -> int:
    unit = UnitOfPrivacy(kind="subject", key=f"file:{rule}", max_records=9, split="file")
    return len({record.unit for record in Ingestion(paths, IngestSpec(format="text", unit=unit), KEY)})


def test_the_place_of_a_file_names_the_subject(tmp_path: Path) -> None:
    paths = [tmp_path / who / f"{who}_{n}.txt" for who in ("anna", "BOB", "Anna") for n in (1, 2)]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"letter {number}")
    assert subjects(paths, "directory") == 2
    assert subjects(paths, "{subject}_*.txt") == 2
    assert subjects(paths, "{subject}/*.txt") == 2
    assert subjects(paths, "*_{subject}.txt") == 2
    with pytest.raises(DataInvalid, match="does not fit the pattern"):
        subjects(paths, "{subject}-*.txt")
    for wrong in ("*.txt", "{subject}{subject}", ""):
        with pytest.raises(UsageError, match="once"):
            subjects(paths, wrong)
