"""Every verb with --json on success and on a failure, what an admin mistypes, streams and signals that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from appliance.cli.app import _obstacle, run
from appliance.cli.lazy import TABLE, load
from appliance.errors import ArtefactMissing, ConfigInvalid, UsageError
from tests.e2e.conftest import Appliance, write_notes

ELSEWHERE = {
    "demo": "tests/e2e/test_demo.py",
    "train join": "tests/e2e/test_nodes.py",
    "doctor": "tests/e2e/test_planes.py",
    "serve start": "tests/e2e/test_serve_job.py",
    "serve drill": "tests/e2e/test_serve_job.py",
    "serve bench": "tests/e2e/test_serve_job.py",
    "model chat": "tests/e2e/test_chat.py",
    "model merge": "tests/e2e/test_convert.py",
    "model quantize": "tests/e2e/test_convert.py",
    "evaluate attention": "tests/e2e/test_attention.py",
    "evaluate compare": "not run anywhere yet: it takes two runs that were measured on one benchmark",
}
"""Verbs whose success is expensive or needs what is not here; their failures are below."""
COLUMNS = ("--prompt", "question", "--completion", "answer")


def verbs(command: Any, path: str) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from verbs(inner, f"{path} {name}")
    else:
        yield path


EVERY_VERB = [path for word in TABLE for path in verbs(load(word), word)]

FAILS: dict[str, tuple[str, int]] = {
    "init": ("--policy nowhere.yaml", 11),
    "status": ("--home nowhere", 11),
    "doctor": ("--record nowhere.json", 11),
    "demo": ("--media nowhere", 11),
    "policy check": ("nowhere.yaml", 11),
    "policy show": ("--home nowhere", 11),
    "policy activate": ("nowhere.yaml", 11),
    "key unlock": ("--passphrase-file nowhere", 2),
    "key lock": ("--home nowhere", 11),
    "key status": ("--home nowhere", 11),
    "key rotate": ("", 2),
    "data ingest": ("nowhere.csv --name x --units 600", 13),
    "data list": ("--home nowhere", 11),
    "data show": ("nothing", 11),
    "data retire": ("nothing", 11),
    "data verify": ("nothing", 11),
    "model import": ("nowhere --name x", 11),
    "model list": ("--home nowhere", 11),
    "model verify": ("nothing", 11),
    "model chat": ("nothing --prompt x", 11),
    "model merge": ("nothing --out x", 11),
    "model quantize": ("nothing --out x --to int8", 11),
    "evaluate attention": ("nothing --prompt x --out x", 11),
    "evaluate compare": ("nothing other --benchmark micro:2", 11),
    "train plan": ("notes nothing --epsilon 1", 11),
    "train start": ("nowhere.yaml", 11),
    "train resume": ("nothing", 11),
    "train abort": ("nothing", 11),
    "train status": ("--home nowhere", 11),
    "train watch": ("nothing", 11),
    "train join": ("nowhere.json", 11),
    "node init": ("--dry-run", 2),
    "node show": ("--home nowhere", 11),
    "watermark keygen": ("--dry-run", 2),
    "watermark embed": ("nothing", 11),
    "watermark detect": ("nowhere --run nothing", 11),
    "evaluate run": ("nothing --dataset held", 11),
    "export bundle": ("nothing --out x", 11),
    "export verify": ("nowhere", 11),
    "audit selftest": ("nowhere.yaml", 11),
    "serve start": ("nothing --primary llama.cpp:x", 11),
    "serve drill": ("nothing --primary llama.cpp:x --fallback llama.cpp:x", 11),
    "serve bench": ("nothing --primary llama.cpp:x", 11),
    "serve client add": ("x --dry-run", 2),
    "decide cost": ("nowhere.yaml", 11),
    "decide score": ("nowhere.yaml", 11),
    "serve client revoke": ("nobody", 11),
    "serve client list": ("--home nowhere", 11),
    "budget show": ("nothing", 11),
    "report build": ("nothing --out x", 11),
    "report verify": ("nowhere", 11),
    "ledger log": ("--since yesterday", 2),
    "ledger show": ("99999", 11),
    "ledger prove": ("", 2),
    "ledger verify": ("--fingerprint nonsense", 8),
    "ledger sign": ("--home nowhere", 11),
    "ledger export": ("--home nowhere x", 11),
    "ledger erase": ("2", 2),
    "ledger upgrade": ("--home nowhere", 11),
    "ledger relocate": ("--home nowhere", 11),
    "ledger head": ("--home nowhere", 11),
    "ledger witness export": ("--out x --from 99999", 2),
    "ledger witness import": ("nowhere", 2),
}


@pytest.fixture
def home(sealed: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Appliance:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(sealed.home))
    monkeypatch.setenv("APPLIANCE_PASSPHRASE_FILE", str(sealed.passphrase))
    return sealed


def test_the_table_has_every_verb() -> None:
    assert sorted(FAILS) == sorted(EVERY_VERB)


def test_every_verb_prints_one_document_on_an_error(home: Appliance, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {}
    for verb, (words, status) in FAILS.items():
        found = run([*verb.split(), *words.split(), "--json"])
        out, err = capsys.readouterr()
        document = json.loads(out)
        assert document["schema"] == "appliance.error/1", verb
        assert document["exit_status"] == found, verb
        assert f"appliance: error: {document['where'] and document['where'] + ': '}{document['message']}" in err
        assert "internal error" not in err, verb
        if found != status:
            wrong[verb] = (found, document["message"])
    assert wrong == {}


def test_a_path_or_a_number_that_cannot_be_is_no_fault_of_the_program(
    home: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file and no directory")
    for words in (
        "train plan notes tiny --epsilon 2 --out nowhere/run.yaml",
        "ledger prove 2 --out file/proof",
        f"ledger prove 2 --out={tmp_path}",
        f"ledger witness export --out {'x' * 300}",
        "report build nobody --out file/report",
        "status --home file",
        "status --home file/home",
        "init --policy default --home /proc/none",
        "ledger show 99999999999999999999",
        "ledger prove 99999999999999999999",
        "train plan notes tiny --epsilon 2 --steps 99999999999999999999 --out run.yaml",
    ):
        status = run(words.split())
        said = capsys.readouterr().err
        assert status in (UsageError.exit_status, ConfigInvalid.exit_status, ArtefactMissing.exit_status), (words, said)
        assert "internal error" not in said, words
    with pytest.raises(FileNotFoundError) as lost:  # of the program's own it stays a fault
        (tmp_path / "elsewhere" / "part").read_bytes()
    assert "internal error" in _obstacle(lost.value, ["status", "--home", "file"]).message


@pytest.mark.parametrize(
    "words",
    [
        "--json key status",
        "key --json status",
        "key status --json",
        "key --home HOME status --json",
        "key status --json --home HOME",
    ],
)
def test_global_options_stand_anywhere(home: Appliance, capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert run(words.replace("HOME", str(home.home)).split()) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "sealed"


def test_quiet_prints_results_and_nothing_else(home: Appliance, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["key", "status", "-q"]) == 0
    assert capsys.readouterr() == ("sealed\n", "")


MISTYPED = [
    ("trian start run.yaml", "appliance train"),
    ("train strat run.yaml", "train start"),
    ("train run run.yaml", "train start"),
    ("ingest data", "data ingest"),
    ("data ingset x.csv", "data ingest"),
    ("list data", "data list"),
    ("unlock", "key unlock"),
    ("key unlok", "key unlock"),
    ("key status --jsn", "--json"),
    ("train plan notes tiny", "train plan --help"),
    ("ledger verfy", "ledger verify"),
    ("version", "--version"),
    ("train start nowhere.yaml", "train plan DATASET MODEL"),
]


@pytest.mark.parametrize(("words", "hint"), MISTYPED)
def test_what_is_mistyped_gets_a_hint(
    home: Appliance, capsys: pytest.CaptureFixture[str], words: str, hint: str
) -> None:
    assert run(words.split()) in (2, 11)
    assert hint in capsys.readouterr().err.split("appliance: hint:")[1]


def test_erasing_asks_first(home: Appliance, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "erase", "2"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["ledger", "erase", "2", "--dry-run"]) == 0
    assert "would erase" in capsys.readouterr().out
    assert run(["ledger", "erase", "2", "--yes"]) == 0


def test_unlocking_again_checks_the_passphrase_and_takes_the_new_time(appliance: Appliance, tmp_path: Path) -> None:
    before = appliance.json("key", "status")["until"]
    wrong = tmp_path / "wrong.txt"
    wrong.touch(mode=0o600)
    wrong.write_text("not the passphrase at all\n")
    appliance("key", "unlock", "--passphrase-file", str(wrong), expect=13)
    assert appliance.json("key", "status")["until"] == before
    assert appliance.json("key", "unlock", "--minutes", "5")["until"] < before
    assert appliance.json("key", "status")["state"] == "unsealed"


def shell(home: Appliance, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -I -m appliance --home {home.home} {line}"
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=variables, check=False)


@pytest.mark.parametrize(
    ("line", "status"),
    [("ledger log > /dev/full", 9), ("--help > /dev/full", 9), ("key status >&-", 0), ("key status 2>&- <&-", 0)],
)
def test_a_full_or_closed_output(home: Appliance, line: str, status: int) -> None:
    done = shell(home, line)
    assert done.returncode == status, done.stderr
    assert "internal error" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_may_stop_reading(home: Appliance) -> None:
    for line in ("--help | true", "ledger log | true"):
        done = shell(home, f"{line}; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_directory(home: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root: not run")
    home.home.parent.chmod(0o700)  # whatever the directories above it let others do
    monkeypatch.delenv("HOME")
    for words, said in ((["key", "status"], "permission denied"), (["key", "status", "--home", ""], "")):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            monkeypatch.delenv("APPLIANCE_HOME") if not said else None
            os.setuid(54321)
            status = run(words[:2])
            sys.stderr.flush()
            os._exit(status)
        os.close(write)
        with os.fdopen(read) as stream:
            err = stream.read()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, err
        assert (said or "no home directory") in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_an_interruption(home: Appliance, number: int) -> None:
    code = (
        "import os, sys; from appliance.cli import app, streams; from appliance.flows.home import Home\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup, under which tests may run, ignores it
        "streams.heed_signals()\n"
        f"Home.open = lambda root: os.kill(os.getpid(), {int(number)})\n"
        "sys.exit(app.run(['key', 'status']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr


VERIFIED_BY_THE_VERIFIER = ("report verify", "export verify")
"""Their document is that of the stand-alone `verify.py`."""


def test_every_verb_prints_one_document_on_success(
    home: Appliance, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeded = set(ELSEWHERE)

    def ok(words: str, *more: str) -> dict[str, Any]:
        status = run([*words.split(), *more, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, (words, err)
        document = json.loads(out)
        verb = next(verb for verb in sorted(EVERY_VERB, key=len, reverse=True) if words.startswith(verb))
        succeeded.add(verb)
        own = "verification" if verb in VERIFIED_BY_THE_VERIFIER else verb.replace(" ", ".")
        assert document["schema"] == f"appliance.{own}/1"
        assert not (document.get("dry_run") and "wrote" in out)
        return document

    ok("init --home other --policy default")
    ok("node init --home node")
    ok("node show --home node")
    ok("key unlock")
    try:
        for words in ("status", "policy show", "key status", "data list", "data verify", "model list", "model verify"):
            ok(words)
        policy = Path(__file__).parents[2] / "policies" / "demo.yaml"
        ok("policy check", str(policy))
        write_notes(tmp_path / "held.csv")
        (tmp_path / "held.csv").write_text((tmp_path / "held.csv").read_text().replace("number", "held number"))
        held = ("--name", "held", "--units", "600", "--purpose", "evaluation", *COLUMNS)
        ok("data ingest held.csv", *held, "--dry-run")
        ok("data ingest held.csv", *held)
        ok("data show held")
        ok("model import", str(tiny_model_dir), "--name", "again", "--dry-run")
        ok("model import", str(tiny_model_dir), "--name", "again")
        small = ("--steps", "2", "--batch", "60", "--max-tokens", "64", "--rank", "8", "--epsilon", "2")
        ok("train plan notes tiny --out run.yaml --dry-run", *small)
        ok("train plan notes tiny --out run.yaml", *small)
        ok("train start run.yaml --dry-run")
        ok("audit selftest run.yaml")
        done = ok("train start run.yaml --detach")["run"]
        assert ok(f"train watch {done}")["state"] == "finished"
        endless = {"epsilon: 2.0": "epsilon: 1.0", "steps: 2\n": "steps: 4000\n"}  # it is there when it is aborted
        text = Path("run.yaml").read_text()
        assert all(text.count(old) == 1 for old in endless)
        Path("other.yaml").write_text(reduce(lambda given, change: given.replace(*change), endless.items(), text))
        other = ok("train start other.yaml --again --detach")["run"]
        ok(f"train abort {other} --dry-run")
        ok(f"train abort {other}")
        examples = Path(__file__).parents[2] / "docs" / "examples"
        ok("decide cost", str(examples / "prices.yaml"))
        ok("decide score", str(examples / "scores.yaml"))
        ok("serve client add ward")
        ok("serve client list")
        ok("serve client revoke ward")
        ok("train status")
        ok("budget show")
        ok("watermark keygen")
        ok(f"watermark embed {done}")
        ok(f"watermark detect {home.home}/runs/{done}/released --run {done}")
        ok(f"evaluate run {done} --dataset held --public-tokens 500")
        ok(f"report build {done} --out report")
        pin = ok("ledger head")["fingerprint"]
        ok("report verify report --trusted-key", pin)
        ok(f"export bundle {done} --out bundle --dry-run")
        ok(f"export bundle {done} --out bundle")
        ok("export verify bundle --trusted-key", pin)
        for words in ("log", "show 2", "prove 2", "verify", "sign", "export copy", "erase 2 --yes", "upgrade"):
            ok(f"ledger {words}")
        ok("ledger witness export --out request")
        ok("data retire held --dry-run")
        ok("data retire held --yes")
        ok("policy activate", str(policy))
    finally:
        ok("key lock")
    ok("key rotate --ledger")
    assert set(EVERY_VERB) - succeeded == {"train resume", "ledger relocate", "ledger witness import"}, (
        "tested elsewhere"
    )
