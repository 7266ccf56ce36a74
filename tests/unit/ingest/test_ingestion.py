"""Whole ingests: shapes, units of privacy, duplicates, caps, fingerprints."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ArtefactMissing, DataInvalid, IntegrityError, UsageError
from appliance.ingest.fingerprints import Fingerprinter, overlap, sort_unique
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.spec import IngestSpec
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.record import Record
from appliance.values import Private

KEY = b"k" * 32
SUBJECT = UnitOfPrivacy(kind="subject", key="who", max_records=2)
LONG = "a text that is long enough to be recognised wherever it turns up again"


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ingest(*paths: Path, key: bytes = KEY, **spec: Any) -> tuple[list[Record], Ingestion]:
    ingestion = Ingestion(paths, IngestSpec(**{"format": "jsonl", **spec}), key)
    return list(ingestion), ingestion


def texts(records: list[Record]) -> list[str]:
    return [record.parts[-1][1] for record in records]


def test_auto_takes_each_row_by_its_columns(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    messages.append({"role": "assistant", "content": "a"})
    rows = [{"messages": messages}, {"prompt": "p", "completion": "c"}, {"text": "t", "other": 1}, {"nothing": 1}]
    records, ingestion = ingest(jsonl(tmp_path / "f", *rows))
    assert [(r.kind, r.parts) for r in records] == [
        ("chat", (("system", "s"), ("user", "u"), ("assistant", "a"))),
        ("completion", (("prompt", "p"), ("completion", "c"))),
        ("text", (("text", "t"),)),
    ]
    assert len({record.unit for record in records}) == 3
    assert [(bad.line, bad.reason) for bad in ingestion.rejected] == [
        (4, "has neither messages or conversations, nor prompt and completion, nor text")
    ]
    counts = (ingestion.records, ingestion.units, ingestion.rejected_count, ingestion.accepted_count)
    assert [count.reveal() for count in counts] == [3, 3, 1, 3]
    assert all(type(count) is Private for count in counts)


def test_sharegpt_and_alpaca_are_known_by_their_columns(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    rows = [
        {"conversations": turns},
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "greet", "input": " ", "output": "hello"},
        {"instruction": "bow", "output": "done"},
        {"conversations": [{"from": "bot", "value": "a"}]},
        {"conversations": [{"from": "gpt", "value": "a", "image": "x"}]},
        {"conversations": [{"from": "human", "value": "u"}]},
        {"instruction": "add", "input": ["1"], "output": "3"},
        {"instruction": " ", "output": "3"},
    ]
    records, ingestion = ingest(jsonl(tmp_path / "f", *rows))
    assert [(r.kind, r.parts) for r in records] == [
        ("chat", (("system", "s"), ("user", "u"), ("assistant", "a"))),
        ("completion", (("prompt", "add\n\n1 2"), ("completion", "3"))),
        ("completion", (("prompt", "greet"), ("completion", "hello"))),
        ("completion", (("prompt", "bow"), ("completion", "done"))),
    ]
    assert [(bad.line, bad.reason) for bad in ingestion.rejected] == [
        (5, "turn 1 is from none of system, human, user, gpt, assistant, tool"),
        (6, "message 1 has more than a role and a content"),
        (7, "has no message of the assistant, so there is nothing to learn"),
        (8, "'input' is not a text"),
        (9, "'instruction' is empty"),
    ]


TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TASK = {"instruction": "q", "input": "", "output": "a"}
BESIDE: dict[str, dict[str, Any]] = {
    "tools": {"messages": CHAT, "tools": [{"type": "function"}]},
    "functions": {"messages": CHAT, "functions": [{"name": "f"}]},
    "tools of the other form": {"conversations": TURNS, "tools": "[{}]"},
    "history": TASK | {"history": [["q0", "a0"]]},
    "system": TASK | {"system": "Be brief."},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stood_before_an_answer_is_not_left_out_silently(name: str, tmp_path: Path) -> None:
    row = BESIDE[name]
    records, ingestion = ingest(jsonl(tmp_path / "f", row, {"text": "t"}))
    assert texts(records) == ["t"]
    assert "which would be left out" in ingestion.rejected[0].reason
    bare = {key: value if key in ("conversations", "messages", *TASK) else None for key, value in row.items()}
    assert texts(ingest(jsonl(tmp_path / "g", bare))[0]) == ["a"]


def test_the_system_message_beside_a_sharegpt_conversation_opens_it(tmp_path: Path) -> None:
    records, _ = ingest(jsonl(tmp_path / "f", {"system": "Be brief.", "conversations": TURNS}))
    assert records[0].parts == (("system", "Be brief."), ("user", "q"), ("assistant", "a"))


def test_templates_and_plain_columns(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text('drug name,review,rating\nX,"fine, really",9\n')
    records, _ = ingest(file, format="csv", prompt="{{Review}} of {drug name}: {review}", completion="rating")
    assert records[0].parts == (("prompt", "{Review} of X: fine, really"), ("completion", "9"))
    records, _ = ingest(file, format="csv", text="review")
    assert texts(records) == ["fine, really"]


@pytest.mark.parametrize(("split", "expected"), [("line", 3), ("paragraph", 2), ("file", 1)])
def test_plain_text(tmp_path: Path, split: str, expected: int) -> None:
    file = tmp_path / "f.txt"
    file.write_bytes(b"\xef\xbb\xbf\n one\r\ntwo\r\n \r\n\nthree")
    records, _ = ingest(file, format="text", unit=UnitOfPrivacy(split=split))
    assert len(records) == expected
    assert texts(records)[0] == {"line": " one", "paragraph": " one\r\ntwo"}.get(split, " one\r\ntwo\r\n \r\n\nthree")


def test_html_is_unescaped_only_on_request(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "f", {"text": "it&#039;s &lt;fine&gt; &amp; well&#xD800;"})
    assert texts(ingest(file)[0]) == ["it&#039;s &lt;fine&gt; &amp; well&#xD800;"]
    assert texts(ingest(file, unescape_html=True)[0]) == ["it's <fine> & well\ufffd"]


def test_gzip_and_several_files(tmp_path: Path) -> None:
    first, second = jsonl(tmp_path / "a", {"text": "1"}), tmp_path / "b"
    second.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "2"}\nbad\n{"text": "1"}'))
    records, ingestion = ingest(first, second)
    assert texts(records) == ["1", "2"]
    assert [(bad.file, bad.line, bad.offset) for bad in ingestion.rejected] == [(str(second), 2, 17)]


def test_duplicates_are_merged_for_records(tmp_path: Path) -> None:
    rows = [{"text": str(n % 700), "extra": n} for n in range(5000)]
    records, ingestion = ingest(jsonl(tmp_path / "f", *rows))
    assert texts(records) == [str(n) for n in range(700)]
    assert ingestion.accepted_count.reveal() == 5000


def test_subjects_are_capped_by_the_first_different_records(tmp_path: Path) -> None:
    rows = [("p", "1"), ("q", "1"), ("p", "1"), ("p", "2"), (" P ", "3"), ("q", "4"), (7, "1"), ("", "1"), (1.5, "1")]
    file = jsonl(tmp_path / "f", *({"who": who, "text": text} for who, text in rows))
    records, ingestion = ingest(file, unit=SUBJECT)
    assert texts(records) == ["1", "1", "2", "4", "1"]
    assert sorted(Counter(record.unit for record in records).values()) == [1, 2, 2]
    assert ingestion.units.reveal() == 3
    assert [bad.line for bad in ingestion.rejected] == [8, 9]


def leaving_changes_only_the_leaver(tmp_path: Path) -> bool:
    rows = [{"who": str(n % 7), "text": str(n * n % 13)} for n in range(100)]
    everyone, _ = ingest(jsonl(tmp_path / "all", *rows), unit=SUBJECT)
    without, _ = ingest(jsonl(tmp_path / "less", *(row for row in rows if row["who"] != "3")), unit=SUBJECT)
    gone = {record.unit for record in everyone} - {record.unit for record in without}
    assert len(gone) == 1
    return [record for record in everyone if record.unit not in gone] == without


def test_what_one_subject_gives_changes_nothing_for_another(tmp_path: Path) -> None:
    assert leaving_changes_only_the_leaver(tmp_path)


def test_merging_across_subjects_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fingerprinter, "pair", lambda self, subject, record: record)
    assert not leaving_changes_only_the_leaver(tmp_path)


def test_a_subject_is_not_stored_by_name(tmp_path: Path) -> None:
    records, ingestion = ingest(jsonl(tmp_path / "f", {"who": "Erika Mustermann", "text": "t"}), unit=SUBJECT)
    assert b"Erika" not in records[0].encode() + ingestion.fingerprints


BASE = [{"id": n, "question": f"question {n}: {LONG}", "answer": f"answer {n}"} for n in range(20)]
SAME_DATA = {
    "the same again": (BASE, {"prompt": "question", "completion": "answer"}),
    "one row of it": (BASE[13:14], {"prompt": "question", "completion": "answer"}),
    "columns renamed": ([{"q": r["question"], "a": r["answer"]} for r in BASE], {"prompt": "q", "completion": "a"}),
    "another column": (BASE, {"text": "question"}),
    "a template": (BASE, {"text": "Q: {question} A: {answer}"}),
    "upper case": ([{"text": r["question"].upper()} for r in BASE], {}),
    "other blanks": ([{"text": r["question"].replace(" ", "  ") + "\n"} for r in BASE], {}),
    "as messages": ([{"messages": [{"role": "assistant", "content": BASE[0]["question"]}]}], {}),
}


@pytest.mark.parametrize("name", SAME_DATA)
def test_the_same_data_are_recognised(tmp_path: Path, name: str) -> None:
    rows, spec = SAME_DATA[name]
    first = ingest(jsonl(tmp_path / "a", *BASE), prompt="question", completion="answer")[1].fingerprints
    second = ingest(jsonl(tmp_path / "b", *rows), **spec)[1].fingerprints
    assert overlap(first, second)
    assert overlap(second, first)
    other_key = ingest(jsonl(tmp_path / "b", *rows), **spec, key=b"o" * 32)[1].fingerprints
    assert not overlap(first, other_key)


def test_short_rows_are_recognised_under_other_names(tmp_path: Path) -> None:
    rows = [{"question": f"what about card {n}?", "label": f"card problem number {n}"} for n in range(9)]
    renamed = [{"q": row["question"], "a": row["label"]} for row in rows]
    first = ingest(jsonl(tmp_path / "a", *rows), prompt="question", completion="label")[1].fingerprints
    second = ingest(jsonl(tmp_path / "b", *renamed), text="Q {q} A {a}")[1].fingerprints
    assert overlap(first, second)


def test_unescaping_does_not_hide_data(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a", {"text": f"it&#039;s {LONG}"})
    assert overlap(ingest(file)[1].fingerprints, ingest(file, unescape_html=True)[1].fingerprints)


def test_other_data_do_not_overlap(tmp_path: Path) -> None:
    def chat(n: int) -> dict[str, Any]:
        system = {"role": "system", "content": f"You are a helpful assistant. {LONG}"}
        return {"messages": [system, {"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": "ok"}]}

    first = ingest(jsonl(tmp_path / "a", chat(1), chat(2)))[1].fingerprints
    second = ingest(jsonl(tmp_path / "b", chat(3), chat(4)))[1].fingerprints
    assert not overlap(first, second)
    assert overlap(first, ingest(jsonl(tmp_path / "c", chat(4), chat(2)))[1].fingerprints)


def test_the_same_subject_overlaps_whatever_is_said(tmp_path: Path) -> None:
    first = ingest(jsonl(tmp_path / "a", {"who": "p1", "text": "1"}), unit=SUBJECT)[1].fingerprints
    second = ingest(
        jsonl(tmp_path / "b", {"patient": "P1 ", "text": "2"}), unit=SUBJECT.model_copy(update={"key": "patient"})
    )
    assert overlap(first, second[1].fingerprints)


def test_overlap_at_the_edges() -> None:
    zeros, last = b"x" * 15 + b"\0", b"\xff" * 16
    assert not overlap(b"", b"")
    assert not overlap(b"", zeros)
    assert overlap(zeros, sort_unique(last + zeros + zeros))
    assert not overlap(zeros, sort_unique(b"x" * 14 + b"\0\0" + last))
    assert overlap(last, sort_unique(zeros + last))
    assert sort_unique(last + zeros + last) == zeros + last
    with pytest.raises(IntegrityError):
        overlap(zeros, b"x")


def test_use_once_and_to_the_end(tmp_path: Path) -> None:
    ingestion = Ingestion([jsonl(tmp_path / "f", {"text": "t"})], IngestSpec(format="jsonl"), KEY)
    with pytest.raises(RuntimeError, match="to their end"):
        _ = ingestion.fingerprints
    assert len(list(ingestion)) == 1
    with pytest.raises(RuntimeError, match="once"):
        list(ingestion)


def test_missing_files_are_told_before_anything_is_read(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "f", {"text": "t"})
    with pytest.raises(ArtefactMissing) as caught:
        Ingestion([good, tmp_path / "gone"], IngestSpec(format="jsonl"), KEY)
    assert caught.value.where == str(tmp_path / "gone")
    with pytest.raises(DataInvalid):
        Ingestion([], IngestSpec(format="jsonl"), KEY)
    with pytest.raises(ValueError, match="32 bytes"):
        Ingestion([good], IngestSpec(format="jsonl"), b"short")


MEANINGLESS: list[dict[str, Any]] = [
    {"prompt": "p"},
    {"completion": "c"},
    {"prompt": "p", "completion": "c", "text": "t"},
    {"prompt": "p", "completion": "c", "shape": "text"},
    {"text": "t", "shape": "messages"},
    {"text": "{open"},
    {"text": "close}"},
    {"text": "no {} column"},
    {"text": "{{no column}}"},
    {"format": "csv", "shape": "messages"},
    {"format": "tsv", "shape": "sharegpt"},
    {"format": "text", "text": "t"},
    {"format": "text", "unit": SUBJECT},
    {"unit": UnitOfPrivacy(kind="subject")},
    {"unit": UnitOfPrivacy(kind="record", key="k")},
    {"unit": UnitOfPrivacy(kind="record", max_records=2)},
    {"max_row_bytes": 0},
]


@pytest.mark.parametrize("spec", MEANINGLESS)
def test_meaningless_specs(spec: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        IngestSpec(**{"format": "jsonl", **spec})


def test_real_reviews(drug_reviews: Path) -> None:
    file = drug_reviews / "drugsComTrain.tsv"
    spec = {"format": "tsv", "prompt": "{drugName} for {condition}:\n", "completion": "review", "unescape_html": True}
    records, ingestion = ingest(file, **spec)
    assert ingestion.rejected == []
    assert 590 <= len(records) <= 600
    assert ingestion.accepted_count.reveal() == 600
    reviews = texts(records)
    assert any("\n" in review for review in reviews)
    assert any("didn't" in review for review in reviews)
    assert not any("&#039;" in review for review in reviews)
    plain, again = ingest(file, format="tsv", text="review")
    assert [unescape(text) for text in texts(plain)] == reviews
    assert overlap(ingestion.fingerprints, again.fingerprints)


def test_kept_columns_are_sealed_beside_the_record_and_never_in_its_text(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "lang": "python", "level": 3},
        {"text": "two", "lang": None},
        {"text": "three"},
        {"text": "four", "lang": ["no", "category"]},
        {"text": "five", "lang": "x" * 257},
    ]
    records, ingestion = ingest(jsonl(tmp_path / "f", *rows), keep=("lang", "level"))
    assert [record.fields for record in records] == [(("lang", "python"), ("level", "3")), (), ()]
    assert [Record.decode(record.encode()) for record in records] == records
    assert [(bad.line, bad.reason) for bad in ingestion.rejected] == [
        (4, "column 'lang' is neither text nor a number"),
        (5, "a kept column has more than 256 characters"),
    ]
    plain, _ = ingest(jsonl(tmp_path / "f", *rows[:3]))
    assert [record.parts for record in plain] == [record.parts for record in records]
    assert plain[0].encode() == b'{"u":"%s","k":"text","p":[["text","one"]]}' % plain[0].unit.encode()


def test_a_kept_column_must_be_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("text,lang\none,python\n")
    (record,), _ = ingest(path, format="csv", keep=("lang",))
    assert record.fields == (("lang", "python"),)
    with pytest.raises(DataInvalid, match="no column 'level'"):
        ingest(path, format="csv", keep=("level",))
    with pytest.raises(UsageError, match="no column to keep"):
        IngestSpec(format="text", keep=("lang",))
