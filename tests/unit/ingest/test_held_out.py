"""Which units are held out: a keyed hash of the unit says so, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import UsageError
from appliance.events.states import Purpose
from appliance.flows.data.declaring import Declaration, divide, read_fraction
from appliance.ingest.ingestion import Ingestion, Side
from appliance.ingest.spec import IngestSpec
from appliance.jobs.plan import UnitKind, UnitOfPrivacy

KEY = b"k" * 32
TENTH = Fraction(1, 10)
PEOPLE = IngestSpec(format="jsonl", text="text", unit=UnitOfPrivacy(kind=UnitKind.SUBJECT, key="who", max_records=3))
ROWS = IngestSpec(format="jsonl", text="text")


def write(path: Path, rows: Iterable[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"who": who, "text": text}) + "\n" for who, text in rows))
    return path


def side(path: Path, spec: IngestSpec, held_out: bool | None, fraction: Fraction = TENTH, key: bytes = KEY) -> Any:
    ingestion = Ingestion([path], spec, key, side=None if held_out is None else Side(fraction, held_out))
    return {(record.unit, record.parts[0][1]) for record in ingestion}, ingestion


@pytest.mark.parametrize("spec", [PEOPLE, ROWS], ids=["people", "rows"])
def test_every_record_is_on_one_side_and_every_unit_is_whole(tmp_path: Path, spec: IngestSpec) -> None:
    path = write(tmp_path / "f", ((f"p{n % 700}", f"note {n}") for n in range(2000)))
    everything, _ = side(path, spec, None)
    held, _ = side(path, spec, True)
    rest, _ = side(path, spec, False)
    assert held | rest == everything
    assert {unit for unit, _ in held}.isdisjoint({unit for unit, _ in rest})
    units = len({unit for unit, _ in everything})
    assert 0.05 * units < len({unit for unit, _ in held}) < 0.16 * units


def test_a_person_is_on_the_same_side_in_every_file_however_he_is_written(tmp_path: Path) -> None:
    names = [f"Zoë Müller {n}" for n in range(300)]
    first, _ = side(write(tmp_path / "a", ((name, f"a {name}") for name in names)), PEOPLE, True)
    other = ((name.upper().replace("Ë", "E\u0308"), f"something else of {name}") for name in reversed(names))
    second, _ = side(write(tmp_path / "b", other), PEOPLE, True)
    assert {unit for unit, _ in first} == {unit for unit, _ in second} != set()


def test_a_larger_fraction_holds_out_more_and_never_others(tmp_path: Path) -> None:
    path = write(tmp_path / "f", ((f"p{n}", f"note {n}") for n in range(1000)))
    tenth, fifth = (side(path, PEOPLE, True, fraction)[0] for fraction in (TENTH, 2 * TENTH))
    assert tenth < fifth


def test_another_home_holds_out_others(tmp_path: Path) -> None:
    """Who is held out cannot be worked out without the home's key."""
    path = write(tmp_path / "f", ((f"p{n}", f"note {n}") for n in range(500)))
    held = [{text for _, text in side(path, PEOPLE, True, key=key)[0]} for key in (KEY, b"j" * 32)]
    assert held[0] != held[1]
    assert len(held[0] & held[1]) < 25


def test_who_else_is_there_moves_nobody(tmp_path: Path) -> None:
    rows = [(f"p{n}", f"note {n}") for n in range(400)]
    whole, _ = side(write(tmp_path / "a", rows), PEOPLE, True)
    part, _ = side(write(tmp_path / "b", rows[::2]), PEOPLE, True)
    assert part <= whole


def test_counts_and_fingerprints_are_those_of_the_side_and_rejections_of_all(tmp_path: Path) -> None:
    path = write(tmp_path / "f", ((f"p{n}", f"note {n}") for n in range(200)))
    path.write_text(path.read_text() + "nonsense\n")
    _, held = side(path, PEOPLE, True)
    _, rest = side(path, PEOPLE, False)
    _, everything = side(path, PEOPLE, None)
    assert held.units.reveal() + rest.units.reveal() == everything.units.reveal() == 200
    for ingestion in (held, rest):
        assert (ingestion.accepted_count.reveal(), ingestion.rejected_count.reveal()) == (200, 1)
    assert len(held.fingerprints) + len(rest.fingerprints) == len(everything.fingerprints)


@pytest.mark.parametrize(
    ("said", "fraction"),
    [
        ("", 0),
        ("10%", TENTH),
        ("0.1", TENTH),
        ("12.5%", Fraction(1, 8)),
        ("50%", Fraction(1, 2)),
        (".2", Fraction(1, 5)),
    ],
)
def test_a_fraction_is_read_as_people_write_it(said: str, fraction: Fraction) -> None:
    assert read_fraction(said) == fraction


@pytest.mark.parametrize(
    "said", ["0%", "0", "51%", "1", "10", "-5%", "ten", "nan", "inf%", "1e999", "0.000001", "%", "1/3"]
)
def test_what_is_no_fraction_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match="not a part of the units"):
        read_fraction(said)


def test_declared_units_are_divided_by_the_public_fraction() -> None:
    rest, held = divide(Declaration(name="notes", units=6005, class_name="health", held_out=TENTH))
    assert (rest.declared.name, rest.declared.units, rest.declared.purpose) == ("notes", 5405, Purpose.TRAINING)
    assert (held.declared.name, held.declared.units, held.declared.purpose) == (
        "notes-held-out", 600, Purpose.EVALUATION,
    )  # fmt: skip
    assert held.declared.class_name == "health"
    assert (rest.side, held.side) == (Side(TENTH, held_out=False), Side(TENTH, held_out=True))
    (whole,) = divide(Declaration(name="notes", units=6005))
    assert (whole.declared.units, whole.side) == (6005, None)


@pytest.mark.parametrize(
    "said",
    [
        {"held_out_name": "x"},
        {"held_out": TENTH, "held_out_name": "../x"},
        {"held_out": TENTH, "purpose": Purpose.EVALUATION},
    ],
)
def test_what_means_nothing_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Declaration(name="notes", units=600, **said)
