"""Names, options, arguments and files that somebody else chose: none enters the ledger, nor the terminal as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.cli import app
from appliance.errors import Busy, ConfigInvalid, UsageError
from appliance.flows import acceptance, doctor, orphans, passing
from appliance.flows.data import declaring
from appliance.flows.data import ingest as ingest_flow
from appliance.flows.home import Home, Operator
from appliance.flows.model import import_model as import_flow
from appliance.flows.release.bundle import bundle
from appliance.ledger import canonical
from appliance.ledger.ledger import Ledger
from appliance.names import is_unruly
from appliance.policy import policy
from appliance.policy.run_file import PhaseChoice
from tests.builders import bare_home, ledger_config
from tests.databases import PostgresDatabase
from tests.e2e.conftest import Appliance, copy_home, unlocked, write_notes, write_passphrase
from tests.unit.test_names import NO_WORDS, UNRULY

COLUMNS = ("--prompt", "question", "--completion", "answer", "--units", "600")
BYTES = os.fsdecode(b"caf\xe9")


@dataclass
class Opened:
    """An unsealed home, driven in this process."""

    appliance: Appliance
    notes: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *words: str, expect: int = 0) -> tuple[str, str]:
        self.capture.readouterr()
        status = app.run(["--home", str(self.appliance.home), *words])
        said = self.capture.readouterr()
        assert status == expect, said.err
        assert not any(map(is_unruly, (said.out + said.err).split("\n"))), "control characters were printed"
        return said.out, said.err

    def json(self, *words: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self("--json", *words)[0])
        return value

    def ingest(self, *words: str, expect: int = 0) -> tuple[str, str]:
        return self("data", "ingest", str(self.notes), *COLUMNS, *words, expect=expect)

    @property
    def entries(self) -> int:
        return len(self.json("ledger", "log")["entries"])

    @property
    def files(self) -> set[str]:
        kept = (self.appliance.home / name for name in ("objects", "models", "runs"))
        return {str(path) for directory in kept for path in directory.rglob("*")}


@pytest.fixture(scope="session")
def bare(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A sealed home with nothing in it, its ledger in SQLite."""

    def build(directory: Path) -> None:
        write_passphrase(directory / "passphrase.txt")
        Appliance(directory / "home")("init")

    return built_once("bare-home", build)


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Opened]:
    made = Opened(Appliance(tmp_path / "home"), tmp_path / "notes.csv", capsys)
    if request.param == "postgres":
        database: PostgresDatabase = request.getfixturevalue("postgres_database")
        write_passphrase(tmp_path / "passphrase.txt")
        made.appliance("init", "--db", database.urls["url"], "--db-owner", database.urls["owner_url"])
    else:
        copy_home(request.getfixturevalue("bare"), tmp_path)
    write_notes(tmp_path / "notes.csv")
    with unlocked(made.appliance):
        yield made


def test_no_verb_takes_a_name_that_is_none(opened: Opened, tmp_path: Path) -> None:
    """Each verb that takes a name, with each kind of text that is none; nothing is written for any of them."""
    verbs: dict[str, Callable[[str], tuple[str, ...]]] = {
        "dataset": lambda text: ("data", "ingest", str(opened.notes), *COLUMNS, f"--name={text}"),
        "class": lambda text: ("data", "ingest", str(opened.notes), *COLUMNS, "--name=x", f"--class={text}"),
        "model": lambda text: ("model", "import", str(tmp_path), f"--name={text}"),
    }
    lines: dict[str, Callable[[str], tuple[str, ...]]] = {
        "actor": lambda text: (f"--actor={text}", "watermark", "keygen"),
        "reason": lambda text: (f"--reason={text}", "watermark", "keygen"),
        "column": lambda text: ("data", "ingest", str(opened.notes), *COLUMNS, "--name=x", f"--keep={text}"),
        "subject": lambda text: ("data", "ingest", str(opened.notes), *COLUMNS, "--name=x", f"--subject={text}"),
    }
    entries, files = opened.entries, opened.files
    for verb in verbs.values():
        for text in (*UNRULY.values(), *NO_WORDS):
            opened(*verb(text), expect=2)
    for verb in lines.values():
        for text in UNRULY.values():
            opened(*verb(text), expect=2)
    assert (opened.entries, opened.files) == (entries, files)


def test_no_log_has_an_origin_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The passphrase is there, so that nothing but the origin is wrong."""
    write_passphrase(tmp_path / "passphrase.txt")
    for text in UNRULY.values():
        with pytest.raises(ConfigInvalid, match="the origin"):
            Ledger.create(ledger_config(tmp_path / "ledger", origin=text))
    assert not (tmp_path / "ledger").exists()
    for kind in ("newline", "escape sequence", "right to left override"):  # each derives keys from the passphrase
        words = ("init", "--passphrase-file", str(tmp_path / "passphrase.txt"), f"--origin={UNRULY[kind]}")
        assert app.run(["--home", str(tmp_path / "new"), *words]) == ConfigInvalid.exit_status
        assert "the origin" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


REFUSED = [
    ("data", "ingest", BYTES, "--name", "x", "--units", "9"),
    ("data", "show", BYTES),
    ("model", "import", BYTES, "--name", "x"),
    ("policy", "activate", BYTES),
    ("train", "start", BYTES),
    ("train", "abort", BYTES),
    ("ledger", "log", "--subject", BYTES),
    ("export", "verify", BYTES),
    ("--actor", BYTES, "watermark", "keygen"),
    (BYTES,),
]


@pytest.mark.parametrize("opened", ["sqlite"], indirect=True)
def test_arguments_that_are_not_utf_8_are_refused_as_a_user_gives_them(opened: Opened) -> None:
    """One after the other in one home, since none may change it."""
    entries, files = opened.entries, opened.files
    for words in REFUSED:
        done = opened.appliance(*words, expect=2)
        assert "caf\\xe9" in done.err, words
        assert "internal error" not in done.err
        assert (opened.entries, opened.files) == (entries, files), words
    opened.appliance.environment["APPLIANCE_REASON"] = BYTES
    assert "APPLIANCE_REASON" in opened.appliance("status", expect=2).err


@pytest.mark.parametrize("opened", ["sqlite"], indirect=True)
def test_files_with_names_of_every_kind_are_read_or_refused_and_shown_escaped(opened: Opened, tmp_path: Path) -> None:
    row = '{"prompt": "how is patient %d?", "completion": "patient %d feels well"}\n'
    for number, name in enumerate(("a\x1b[2Jb", "a\nb", "a\u202eb", BYTES)):
        directory = tmp_path / f"d{number}"
        directory.mkdir()
        good = "".join(row % (i + 1000 * number, i + 1000 * number) for i in range(600))
        (directory / f"{name}.jsonl").write_text(good + "{\n" * 3)
        (directory / f"{name}.csv").write_text("x\n")
        words = ("data", "ingest", str(directory), "--format", "jsonl", "--name", f"n{number}", "--units", "600")
        _, said = opened(*words)
        assert "\\" in said
        opened("--json", *words[:-3], f"other{number}", *words[-2:])
        opened("data", "ingest", str(directory / "none"), "--name", "x", "--units", "9", expect=2)


@pytest.mark.parametrize("opened", ["sqlite"], indirect=True)
def test_a_model_with_names_of_every_kind_leaves_nothing(opened: Opened, copied_model: Path) -> None:
    files = opened.files
    for imports, name in enumerate((BYTES, "a\x1b[2J", "a\nb"), 1):
        odd = copied_model / f"{name}.pkl"
        odd.touch()
        opened("model", "import", str(copied_model), "--name", "odd", expect=6)
        odd.unlink()
        assert opened.files == files
        assert len(opened.json("ledger", "log", "--type", "model.refused")["entries"]) == imports


def test_ledgers_with_odd_names_stay_readable(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a release before this one wrote them: a dataset that is called a screen full of lies."""
    name = "notes\x1b[2J\r\n\u202eok"
    with monkeypatch.context() as before:
        before.setattr(declaring, "require_word", lambda text, what: text)
        before.setattr("appliance.ledger.log.check_texts", lambda value, where: None)
        opened.ingest("--name", name)
    assert opened.json("data", "list")["datasets"][0]["name"] == name
    assert opened.json("data", "show", name)["name"] == name
    for words in (
        ("data", "list"), ("data", "show", name), ("data", "verify"), ("budget", "show"), ("ledger", "log"),
        ("ledger", "show", "3"), ("ledger", "verify", "--deep"), ("status",), ("--json", "ledger", "log"),
    ):  # fmt: skip
        opened(*words)
    opened.ingest("--name", "after")
    opened("ledger", "verify", "--deep")


@pytest.mark.parametrize("text", UNRULY.values(), ids=UNRULY)
def test_a_recipient_or_a_name_in_a_file_is_no_other(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="a recipient has"):
        bundle(bare_home(tmp_path), "run_1", tmp_path / "out", text, Operator())
    where = {"field": "ward", "in": [text]}
    with pytest.raises(ValidationError, match=r"cannot be shown|surrogate|hex escape"):
        PhaseChoice.model_validate_json(json.dumps({"ratio": 1.0, "units": 9, "where": where}))
    with pytest.raises(ValidationError):
        acceptance.Outcome(name=text, state="passed")
    with pytest.raises(ConfigInvalid):
        policy.parse(json.dumps({"schema": 1, "name": text, "classes": {}}).encode(), "policy.yaml")


def test_what_was_forgotten_at_the_border_is_refused_by_the_ledger() -> None:
    canonical.check_texts({"facts": [{"name": "Zoë", "units": 9, "kept": ["a b"]}]}, "x")
    for text in UNRULY.values():
        with pytest.raises(canonical.LeafInvalid):
            canonical.check_texts({"facts": [{"name": text}]}, "x")
        with pytest.raises(canonical.LeafInvalid):
            canonical.check_texts({text: 1}, "x")


def test_what_an_ingest_wrote_is_removed_when_its_commit_fails(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.ingest("--name", "first")
    files = opened.files
    describe = ingest_flow._describe
    for failure in (Busy("somebody else"), RuntimeError("a bug"), KeyboardInterrupt()):

        def fail(*arguments: Any, failure: BaseException = failure) -> Any:
            assert opened.files > files
            raise failure

        monkeypatch.setattr(ingest_flow, "_describe", fail)
        status = {Busy: 75, RuntimeError: 1, KeyboardInterrupt: 130}[type(failure)]
        opened.ingest("--name", "second", expect=status)
        assert opened.files == files
    monkeypatch.setattr(ingest_flow, "_describe", describe)
    opened.ingest("--name", "second")
    opened("data", "verify")


def test_what_an_import_wrote_is_removed_when_its_commit_fails(
    opened: Opened, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = opened.files

    def fail(*arguments: Any) -> Any:
        assert any(path.endswith("model.safetensors") and "/models/" in path for path in opened.files)
        raise Busy("somebody else")

    with monkeypatch.context() as failing:
        failing.setattr(import_flow, "_describe", fail)
        opened("model", "import", str(tiny_model_dir), "--name", "tiny", expect=75)
    assert opened.files == files
    opened("model", "import", str(tiny_model_dir), "--name", "tiny")
    opened("model", "verify")


def test_a_row_that_did_commit_keeps_its_objects(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the commit was lost: the ingest fails, but the dataset is there."""
    book = ingest_flow._book

    def lose(*arguments: Any) -> Any:
        book(*arguments)
        raise Busy("the answer was lost")

    monkeypatch.setattr(ingest_flow, "_book", lose)
    opened.ingest("--name", "first", expect=75)
    opened("data", "verify")
    assert len(opened.json("data", "list")["datasets"]) == 1


def test_orphans_are_found_and_the_next_ingest_removes_them(opened: Opened) -> None:
    opened.ingest("--name", "first")
    home, files = Home.open(opened.appliance.home), opened.files
    left = [home.objects / ("0" * 64), home.models / ("1" * 64), home.runs / "import_0123456789ab"]
    left[0].write_bytes(b"sealed, and then the power failed")
    for directory in left[1:]:
        directory.mkdir()
        (directory / "model.safetensors").touch()
    (home.objects / "README").write_text("not ours, and no digest")
    assert orphans.find(home) == left[:2]
    assert [(found.verdict, found.detail[:21]) for found in doctor._orphans(home.root)] == [
        ("warning", "3 that nothing owns; ")
    ]
    with orphans.unswept(home.objects):  # somebody is between its object and its row
        assert orphans.find(home) == left[1:2]
        opened.ingest("--name", "second")
        assert left[0].exists()
    opened.ingest("--name", "third")
    assert not left[0].exists()
    orphans.remove(home, home.models)
    with passing.passing_directory(home, "import") as mine, passing.passing_directory(home, "import") as another:
        assert not left[2].exists()
        assert mine.path.exists()
        assert another.path.exists()
    assert not mine.path.exists()
    assert orphans.find(home) == passing.find(home) == []
    assert (home.objects / "README").exists()
    assert files < opened.files
    opened("data", "verify")
