"""No private text outside of sealed objects: every byte that any process writes is searched for one planted token.

A whole life of the appliance runs under strace, the key agent and the workers included: init, unlock, import, ingest
of training and of evaluation data, ingests of malformed rows, a run that is killed and resumed, watermark, evaluation,
report, bundle, verifier, export of the ledger, lock. Files that are deleted again, sockets, pipes and terminals are
seen as writes; what is left is searched as files too, the report and the bundle among them. The token is sought as
text, UTF-16, base64, hex, token ids, and inside what can be decompressed. Planted leaks of each kind must be found by
the same search, and so must one that a worker with a line altered carries into the ledger, the report and the bundle.

Not seen: a change to a memory-mapped file that is gone afterwards (no such mapping may be made: that is checked), and
encodings that are not listed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.files import locked
from tests.adversarial.tracing import ROOT, SECRET, leaks, streams, traced, unseen
from tests.e2e.conftest import Appliance, write_passphrase
from tests.e2e.test_selftest import altered, replace
from tests.fault.test_train_crash import Supervised, until

RECORDS = 600
SHARED = Path("/dev/shm")

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or os.geteuid() != 0,
    reason="not run: needs strace, and root to read what a process writes that denies being traced",
)


# --- the life that is traced -----------------------------------------------------------------------------------------


def write_input(directory: Path) -> None:
    """The owner's files: 600 good rows and three bad, and files that tempt an error message to quote a row."""
    directory.mkdir()
    lines = ["patient,question,answer"]
    lines += [f"p{i // 2},how is patient {i}?,{SECRET} number {i} feels well today" for i in range(RECORDS)]
    lines[300:300] = [f"p,how?,{SECRET},{SECRET}", SECRET, f"p,how?,{SECRET}\x00"]
    (directory / "notes.csv").write_text("\n".join(lines) + "\n")
    strangers = [f"s{i},how is stranger {i}?,{SECRET} stranger {i} is as well as can be" for i in range(RECORDS)]
    (directory / "held.csv").write_text("\n".join([lines[0], *strangers]) + "\n")
    wide = [f"{line},{SECRET},{SECRET}" for line in lines[1:300]]
    (directory / "wide.csv").write_text("\n".join([lines[0], *wide, f'p9,"{SECRET} is never closed']) + "\n")
    bad = [
        f'{{"prompt": "{SECRET}", "completion": NaN}}',
        f'{{"{SECRET}": ',
        f'"{SECRET}"',
        f'{{"prompt": ["{SECRET}"]}}',
    ]
    (directory / "bad.jsonl").write_text("\n".join(bad * 150) + "\n")
    (directory / "bad.txt").write_bytes(b"caf\xe9 " + SECRET.encode())


def live(home: Path, inputs: Path, model: Path) -> None:
    """Everything the appliance does, once. Runs in the traced process; nothing here writes private text itself."""
    run = train(Appliance(home), inputs, model)
    released = home / "runs" / run / "released"
    appliance = Appliance(home)
    appliance("watermark", "embed", run)
    appliance("watermark", "detect", str(released), "--run", run)
    hand_over(appliance, run, home.with_name("out"))
    for words in (("ledger", "verify"), ("train", "status"), ("data", "show", "notes"), ("budget", "show")):
        appliance(*words)
    appliance("key", "lock")


def train(appliance: Appliance, inputs: Path, model: Path) -> str:
    """From nothing to a finished run."""
    columns = ("--prompt", "question", "--completion", "answer", "--units", str(RECORDS))
    appliance("init", "--policy", "default")
    appliance("key", "unlock")
    appliance("watermark", "keygen")
    appliance("model", "import", str(model), "--name", "tiny")
    appliance("data", "ingest", str(inputs / "notes.csv"), "--name", "notes", *columns)
    held = ("--name", "held", "--purpose", "evaluation")
    appliance("data", "ingest", str(inputs / "held.csv"), *held, *columns)
    appliance("data", "ingest", str(inputs / "wide.csv"), "--name", "wide", *columns, expect=6)
    appliance("data", "ingest", str(inputs / "bad.jsonl"), "--name", "bad", "--units", str(RECORDS), expect=6)
    appliance("data", "ingest", str(inputs / "bad.txt"), "--name", "text", "--units", str(RECORDS), expect=6)
    small = ("--steps", "3", "--batch", "60", "--max-tokens", "64", "--rank", "2", "--epsilon", "1")
    run_file = appliance.home.with_name("run.yaml")
    appliance("train", "plan", "notes", "tiny", "--out", str(run_file), *small)
    return killed_and_resumed(appliance, run_file)


def hand_over(appliance: Appliance, run: str, out: Path) -> None:
    """From a marked run to what leaves the building, and to the auditor's verdict on it."""
    appliance("evaluate", "run", run, "--dataset", "held", "--public-tokens", "300")
    appliance("report", "build", run, "--out", str(out / "report"))
    appliance("export", "bundle", run, "--out", str(out / "bundle"), "--recipient", "auditor")
    appliance("ledger", "export", str(out / "log"))
    (out / "keys.txt").write_text("\n".join(appliance.json("ledger", "head")["keys"]) + "\n")
    pinned = ("--trusted-key", str(out / "keys.txt"), "--state", str(out / "seen.json"))
    appliance("export", "verify", str(out / "bundle"), *pinned)
    subprocess.run([sys.executable, "-I", str(out / "bundle" / "verify.py"), *pinned], check=True, capture_output=True)


def killed_and_resumed(appliance: Appliance, run_file: Path) -> str:
    """Kill a run's worker when it has sampled a batch; its supervisor stands still until then, and so it cannot end."""
    life = Supervised(appliance, "train", "start", str(run_file))
    worker = life.find_worker()
    assert worker is not None
    os.kill(life.process.pid, signal.SIGSTOP)
    until(lambda: life.attempts() > 0, "a batch is sampled")
    life.kill(worker)
    os.kill(life.process.pid, signal.SIGCONT)
    status, err = life.close()
    assert status == 130, err
    appliance("train", "resume", life.run)
    return life.run


@pytest.fixture(scope="session")
def token_ids(tiny_model_dir: Path) -> list[int]:
    """The secret as ids of the tiny model's tokenizer (bytes, so they are the same wherever the secret stands)."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json")).encode(SECRET, add_special_tokens=False).ids
    assert len(ids) == len(SECRET)
    return list(ids)


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lived(built_once: Callable[[str, Callable[[Path], None]], Path], tiny_model_dir: Path) -> Path:
    """A directory with the input, with what was traced of a whole life, and with what that life left behind."""

    def build(directory: Path) -> None:
        write_input(directory / "input")
        scanned = directory / "scanned"
        (scanned / "tmp").mkdir(parents=True)
        write_passphrase(scanned / "passphrase.txt")
        words = (str(scanned / "home"), str(directory / "input"), str(tiny_model_dir))
        before = set(SHARED.iterdir())
        traced_here("live", directory / "traces", scanned / "tmp", *words)
        with locked(SHARED):  # another test leaves something there
            left = left_in_shared_memory(before)
        (directory / "shared.txt").write_text("\n".join(map(str, left)))

    return built_once("traced-life", build)


def left_in_shared_memory(before: set[Path]) -> list[Path]:
    """What is in /dev/shm and was not. It is everyone's: the databases that other tests keep there are large."""
    return [path for path in SHARED.iterdir() if path not in before and not (path / "data" / "PG_VERSION").exists()]


def traced_here(what: str, traces: Path, temporary: Path, *words: str, cwd: Path = ROOT) -> None:
    """Call a function of this module in a traced process; the appliance is the one in `cwd`."""
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    traced(traces, sys.executable, "-m", "tests.adversarial.test_leaks", what, *words, environment=environment, cwd=cwd)


@needs_strace
@pytest.mark.timeout(3600)
def test_no_process_writes_private_text(lived: Path, token_ids: list[int]) -> None:
    # The search is worth nothing if it does not see what each process writes: some public words of each.
    seen = streams(lived / "traces")
    for place, words in {
        "result.json": b"appliance.result/1",
        "journal.jsonl": b'"type":"attempt"',
        "adapter.partial": b"lora_A",
        "released.partial": b"lora_A",
        "ledger.db": b"run.settled",
        "pipe:": b"not one row can be used",
        "socket:": b"release",
        "report.html": b"<!DOCTYPE html>",
        "manifest.json": b"watermark_certificate.json",
        "seen.json": b"appliance.invalid/",
    }.items():
        assert any(place in name and words in data for name, data in seen.items()), f"no {words!r} in {place}"
    assert any(b"evaluation_id" in data for name, data in seen.items() if "result.json" in name)
    assert any(b"appliance.keyagent" in data for name, data in seen.items() if name.endswith("command"))

    assert unseen(lived / "traces", lived / "input") == []
    shared = map(Path, (lived / "shared.txt").read_text().splitlines())
    assert leaks([lived / "scanned", *shared], lived / "traces", token_ids) == {}


@needs_strace
@pytest.mark.timeout(3600)
def test_a_worker_that_leaks_is_found_wherever_its_leak_goes(lived: Path, tmp_path: Path, token_ids: list[int]) -> None:
    software, scanned = tmp_path / "software", tmp_path / "scanned"
    old = "        libraries=confinement.libraries(),\n"
    altered(software, "worker/evaluate.py", old, old.replace("(),", "() | {'first': first.parts[1][1]},"))
    code = software / "appliance" / "worker" / "evaluate.py"
    released = "released = _release(job, tokenizer, meter, DecodedRecords(records))"
    replace(code, released, f"first = DecodedRecords(records)[0]\n        {released}")
    shutil.copytree(lived / "scanned" / "home", scanned / "home")
    shutil.copy(lived / "scanned" / "passphrase.txt", scanned)
    (scanned / "tmp").mkdir()
    traced_here("hand_over_again", tmp_path / "traces", scanned / "tmp", str(scanned / "home"), cwd=software)
    found = leaks([scanned], tmp_path / "traces", token_ids)
    for place in ("result.json", "ledger.db", "out/report/ledger", "out/bundle/ledger", "out/log"):
        assert any(place in name for name in found), (place, sorted(found))


def hand_over_again(home: Path) -> None:
    appliance = Appliance(home, options=())  # the altered software, in whose directory this runs
    appliance("key", "unlock")
    hand_over(appliance, next((home / "runs").glob("run_*")).name, home.with_name("out"))
    appliance("key", "lock")


# Each is a program of its own that gets the secret, its token ids and a directory on standard input.
PLANTS = {
    "file": "(d / 'a').write_text(s)",
    "upper case": "(d / 'a').write_text(s.upper())",
    "deleted file": "(d / 'a').write_text(s); (d / 'a').unlink()",
    "split write": "f = open(d / 'a', 'wb', 0); f.write(s[:9].encode()); f.write(s[9:].encode()); os.unlink(d / 'a')",
    "standard error": "sys.stderr.write(f'ValueError: {s}')",
    "socket": "a, b = socket.socketpair(); a.sendmsg([s[:5].encode(), s[5:].encode()])",
    "datagram": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.send(s.encode())",
    "file name": "(d / s).touch()",
    "argument": "subprocess.run(['true', s])",
    "child": "subprocess.run(['sh', '-c', 'cat > /dev/null; echo $0 | tr a a', s], start_new_session=True)",
    "utf-16-le": "(d / 'a').write_bytes(b'x' + s.encode('utf-16-le'))",
    "utf-16-be": "(d / 'a').write_bytes(b'x' + s.encode('utf-16-be'))",
    "base64": "(d / 'a').write_bytes(base64.b64encode(b'xx' + s.encode() + b'yy'))",
    "base64 in lines": "(d / 'a').write_bytes(base64.encodebytes(b'x' * 50 + s.encode() + b'y' * 40))",
    "hex": "(d / 'a').write_text(('y' + s).encode().hex())",
    "hex upper case": "(d / 'a').write_text(('y' + s).encode().hex().upper())",
    "zlib": "(d / 'a').write_bytes(zlib.compress(b'z' * 100 + s.encode())); (d / 'a').unlink()",
    "gzip": "(d / 'a').write_bytes(b'head' + gzip.compress(s.encode()))",
    "zip": "zipfile.ZipFile(d / 'a', 'w', zipfile.ZIP_DEFLATED).writestr('b', s * 2)",
    "bzip2": "(d / 'a').write_bytes(bz2.compress(s.encode()))",
    "xz": "(d / 'a').write_bytes(lzma.compress(s.encode()))",
    "token ids as text": "(d / 'a').write_text(json.dumps({'input_ids': [5, *ids, 6]}))",
    "token ids as int32": "(d / 'a').write_bytes(array.array('i', [5, *ids]).tobytes()); (d / 'a').unlink()",
    "token ids as int64": "(d / 'a').write_bytes(array.array('q', [5, *ids]).tobytes())",
    "database column": (
        "c = sqlite3.connect(d / 'a.db'); c.execute('create table t (x)');"
        "c.execute('insert into t values (?)', ('x' * 4077 + s * 2,)); c.commit(); c.close()"
    ),
}  # fmt: skip
if shutil.which("zstd"):
    PLANTS["zstd"] = "(d / 'a').write_bytes(subprocess.run(['zstd', '-c'], input=s.encode(), stdout=-1).stdout)"
PREAMBLE = (
    "import array, base64, bz2, gzip, json, lzma, os, socket, sqlite3, subprocess, sys, zipfile, zlib\n"
    "from pathlib import Path\n"
    "s, ids, d = json.load(sys.stdin); d = Path(d)\n"
)


@needs_strace
@pytest.mark.parametrize("kind", PLANTS)
def test_a_planted_leak_is_found(kind: str, tmp_path: Path, token_ids: list[int]) -> None:
    (tmp_path / "scanned").mkdir()
    message = json.dumps([SECRET, token_ids, str(tmp_path / "scanned")])
    traced(tmp_path / "traces", sys.executable, "-c", PREAMBLE + PLANTS[kind], text=message)
    assert leaks([tmp_path / "scanned"], tmp_path / "traces", token_ids)


def test_what_is_left_in_shared_memory_is_found_by_its_content_and_by_its_name(
    tmp_path: Path, token_ids: list[int]
) -> None:
    before, own = set(SHARED.iterdir()), os.urandom(6).hex()
    left = [SHARED / f"{own}-file", SHARED / f"{own}-{SECRET}"]
    with locked(SHARED):
        try:
            for path in left:
                path.write_text(SECRET if path == left[0] else own)
            found = leaks([path for path in left_in_shared_memory(before) if own in path.name], tmp_path, token_ids)
        finally:
            for path in left:
                path.unlink()
    assert sorted(found) == sorted([str(left[0]), f"name of {left[1]}"])


@needs_strace
def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path, token_ids: list[int]) -> None:
    (tmp_path / "scanned").mkdir()
    message = json.dumps([SECRET, token_ids, str(tmp_path / "scanned")])
    harmless = "(d / 'a').write_bytes(os.urandom(100_000)); print(len(s)); (d / 'b').write_text(s[:-1])"
    traced(tmp_path / "traces", sys.executable, "-c", PREAMBLE + harmless, text=message)
    assert leaks([tmp_path / "scanned"], tmp_path / "traces", token_ids) == {}


@needs_strace
def test_a_mapped_file_and_a_copy_of_the_input_are_noticed(tmp_path: Path) -> None:
    inputs = tmp_path / "input"
    write_input(inputs)
    code = (
        "import mmap, os, sys\nfrom pathlib import Path\nd = Path(sys.argv[1])\n"
        "f = open(d / 'map', 'wb+'); f.truncate(64)\n"
        "m = mmap.mmap(f.fileno(), 64); m[:3] = b'abc'; os.unlink(d / 'map')\n"
        "a, b = open(d / 'input' / 'notes.csv', 'rb'), open(d / 'copy', 'wb')\n"
        "os.sendfile(b.fileno(), a.fileno(), 0, 1000)\n"
    )
    traced(tmp_path / "traces", sys.executable, "-c", code, str(tmp_path))
    mapped, copied = sorted(unseen(tmp_path / "traces", inputs), key=lambda what: "sendfile" in what)
    assert "/map" in mapped
    assert "sendfile" in copied


if __name__ == "__main__":
    {"live": live, "hand_over_again": hand_over_again}[sys.argv[1]](*map(Path, sys.argv[2:]))
