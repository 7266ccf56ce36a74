"""No private text outside of sealed objects: every byte that any process writes is searched for one planted token.

A whole life of the appliance runs under strace, the key agent and the workers included: init, unlock, import, ingest,
ingests of malformed rows, a run that is killed and resumed, verify, lock. Files that are deleted again,
sockets, pipes and terminals are seen as writes; what is left is searched as files too. The token is sought as text,
UTF-16, base64, hex, token ids, and inside what can be decompressed. Planted leaks of each kind must be found by the
same search.

Not seen: a change to a memory-mapped file that is gone afterwards (no such mapping may be made: that is checked), and
encodings that are not listed.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import json
import lzma
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import PASSPHRASE, Appliance

SECRET = "wombat-5527-kathmandu"  # in every record that is ingested, and nowhere else
RECORDS = 600
ROOT = Path(__file__).parents[2]
CALLS = (
    "write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,copy_file_range,splice,vmsplice,"
    "execve,mmap,io_uring_setup"
)
LONGEST = 1 << 24  # bytes of one argument that strace prints

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
    appliance = Appliance(home)
    columns = ("--prompt", "question", "--completion", "answer", "--units", str(RECORDS))
    appliance("init", "--policy", "default")
    appliance("key", "unlock")
    appliance("watermark", "keygen")
    appliance("model", "import", str(model), "--name", "tiny")
    appliance("data", "ingest", str(inputs / "notes.csv"), "--name", "notes", *columns)
    appliance("data", "ingest", str(inputs / "wide.csv"), "--name", "wide", *columns, expect=6)
    appliance("data", "ingest", str(inputs / "bad.jsonl"), "--name", "bad", "--units", str(RECORDS), expect=6)
    appliance("data", "ingest", str(inputs / "bad.txt"), "--name", "text", "--units", str(RECORDS), expect=6)
    small = ("--steps", "3", "--batch", "60", "--max-tokens", "64", "--rank", "2", "--epsilon", "1")
    appliance("train", "plan", "notes", "tiny", "--out", str(home.with_name("run.yaml")), *small)
    run = killed_and_resumed(appliance, home.with_name("run.yaml"))
    appliance("watermark", "embed", run)
    for words in (("ledger", "verify"), ("train", "status"), ("data", "show", "notes"), ("budget", "show")):
        appliance(*words)
    appliance("key", "lock")


def killed_and_resumed(appliance: Appliance, run_file: Path) -> str:
    before = set((appliance.home / "runs").iterdir())
    process = appliance.popen("train", "start", str(run_file))
    while process.poll() is None and not (started := sampled(set((appliance.home / "runs").iterdir()) - before)):
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    process.communicate()
    assert process.returncode == 130
    appliance("train", "resume", started[0].name)
    return started[0].name


def sampled(runs: Iterable[Path]) -> list[Path]:
    """The runs among these that have sampled a batch."""
    journals = [run / "journal.jsonl" for run in runs]
    return [path.parent for path in journals if path.exists() and b'"attempt"' in path.read_bytes()]


# --- what was written ------------------------------------------------------------------------------------------------


def traced(traces: Path, *command: str, environment: dict[str, str] | None = None, text: str = "") -> None:
    """Run a command, with all its descendants, under strace; returns when the last of them has ended."""
    traces.mkdir(exist_ok=True)
    options = ("-f", "-ff", "-qq", "--seccomp-bpf", "-y", "-xx", "-s", str(LONGEST), "-e", "signal=none")
    strace = ("strace", *options, "-e", f"trace={CALLS}", "-o", str(traces / "trace"))
    done = subprocess.run(
        [*strace, *command],
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


STRINGS = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def unescape(text: bytes) -> bytes:
    return ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text)


def calls(traces: Path) -> Iterator[tuple[Path, bytes, bytes]]:
    """Every traced call: the file of its thread, its name, and its arguments as strace printed them."""
    for path in sorted(traces.iterdir()):
        for line in path.read_bytes().splitlines():
            name, bracket, arguments = line.partition(b"(")
            if bracket:
                yield path, name, arguments


def streams(traces: Path) -> dict[str, bytes]:
    """What each thread wrote to each descriptor, in its order, and the words of every command that was started."""
    parts: dict[str, list[bytes]] = defaultdict(list)
    for path, name, arguments in calls(traces):
        if name in (b"mmap", b"io_uring_setup"):
            continue
        target = "command" if name == b"execve" else unescape(arguments.split(b",", 1)[0]).decode(errors="replace")
        for text, cut in STRINGS.findall(arguments):
            assert not cut, f"{path.name}: a write of more than {LONGEST} bytes was not recorded whole"
            parts[f"{path.name} {name.decode()} {target}"].append(bytes.fromhex(text.replace(b"\\x", b"").decode()))
    return {place: b"".join(pieces) for place, pieces in parts.items()}


def unseen(traces: Path, inputs: Path) -> list[str]:
    """Ways to write that leave no bytes in the trace, and were used: shared mappings, io_uring, copies of the input."""
    found = []
    for path, name, arguments in calls(traces):
        shared = name == b"mmap" and b"PROT_WRITE" in arguments and b"MAP_SHARED" in arguments
        if shared and b"MAP_ANONYMOUS" not in arguments and b"/ledger.db-shm>" not in unescape(arguments):
            found.append(f"{path.name} {unescape(arguments)!r}")
        if name in (b"io_uring_setup", b"vmsplice"):
            found.append(f"{path.name} {name!r}")
        if name in (b"sendfile", b"copy_file_range", b"splice") and bytes(inputs) in unescape(arguments):
            found.append(f"{path.name} {name!r} of the input")
    return found


# --- the search ------------------------------------------------------------------------------------------------------


def forms(token_ids: list[int]) -> dict[str, bytes]:
    """The secret in the encodings that are sought; text is sought in lower case, so these are too where case varies."""
    text = SECRET.encode()
    found = {"text": text, "utf-16-le": SECRET.encode("utf-16-le"), "utf-16-be": SECRET.encode("utf-16-be")}
    found["hex"] = text.hex().encode()
    for shift in range(3):
        padded = bytes(shift) + text
        whole = len(padded) // 3 * 3
        found[f"base64+{shift}"] = base64.b64encode(padded[:whole])[4 if shift else 0 :]
    found["token ids as text"] = ",".join(map(str, token_ids)).encode()
    for size, code in ((16, "h"), (32, "i"), (64, "q")):
        found[f"token ids as int{size}"] = struct.pack(f"<{len(token_ids)}{code}", *token_ids)
    return found


def inflate(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What every compressed stream in `data` holds, wherever it begins and however early it breaks off."""
    for match in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd", data):
        rest, magic = data[match.start() :], match[0]
        with contextlib.suppress(zlib.error, OSError, lzma.LZMAError, EOFError):
            if magic[:1] in (b"\x1f", b"\x78"):
                yield "deflated", zlib.decompressobj(47).decompress(rest, 1 << 24)
            elif magic[:1] == b"B":
                yield "bzip2", bz2.BZ2Decompressor().decompress(rest, 1 << 24)
            elif magic[:1] == b"\xfd":
                yield "xz", lzma.LZMADecompressor().decompress(rest, 1 << 24)
            elif shutil.which("zstd"):
                done = subprocess.run(["zstd", "-dcq"], input=rest, capture_output=True, check=False)
                yield "zstd", done.stdout


def search(data: bytes, sought: dict[str, bytes], depth: int = 2) -> set[str]:
    """The forms of the secret that are in `data`, also compressed, up to `depth` times."""
    lower, dense = data.lower(), data.translate(None, b" \t\r\n")
    found = {form for form, needle in sought.items() if needle in data or needle in lower or needle in dense}
    if sought["hex"] in dense.lower():
        found.add("hex")
    for kind, inner in inflate(data) if depth else ():
        found |= {f"{kind} {form}" for form in search(inner, sought, depth - 1)}
    return found


def cells(path: Path) -> bytes:
    """Every value of every table: the file alone may hold a long one in pieces."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        rows = [row for table in tables for row in database.execute(f'select * from "{table}"')]
    values = [value for row in rows for value in row if value is not None]
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


def leaks(places: Iterable[Path], traces: Path, token_ids: list[int]) -> dict[str, set[str]]:
    """Where the secret is, and in which forms: in what was written, in files that are there, and in their names."""
    sought = forms(token_ids)
    found = {place: search(data, sought) for place, data in streams(traces).items()}
    for path in (path for place in places for path in place.rglob("*")):
        found[f"name of {path}"] = search(os.fsencode(path), sought)
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found[str(path)] = search(data, sought)
            if data.startswith(b"SQLite format 3\0"):
                found[f"{path} (cells)"] = search(cells(path), sought)
    return {place: kinds for place, kinds in found.items() if kinds}


@pytest.fixture(scope="session")
def token_ids(tiny_model_dir: Path) -> list[int]:
    """The secret as ids of the tiny model's tokenizer (bytes, so they are the same wherever the secret stands)."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json")).encode(SECRET, add_special_tokens=False).ids
    assert len(ids) == len(SECRET)
    return list(ids)


# --- the tests -------------------------------------------------------------------------------------------------------


@needs_strace
@pytest.mark.timeout(1800)
def test_no_process_writes_private_text(tmp_path: Path, tiny_model_dir: Path, token_ids: list[int]) -> None:
    inputs, scanned, traces = tmp_path / "input", tmp_path / "scanned", tmp_path / "traces"
    write_input(inputs)
    (scanned / "tmp").mkdir(parents=True)
    (scanned / "passphrase.txt").write_text(PASSPHRASE + "\n")
    environment = {**os.environ, "TMPDIR": str(scanned / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = (str(scanned / "home"), str(inputs), str(tiny_model_dir))
    traced(traces, sys.executable, "-m", "tests.adversarial.test_leaks", *words, environment=environment)

    # The search is worth nothing if it does not see what each process writes: some public words of each.
    seen = streams(traces)
    for place, words_ in {
        "result.json": b"appliance.result/1",
        "journal.jsonl": b'"type":"attempt"',
        "adapter.partial": b"lora_A",
        "ledger.db": b"run.settled",
        "pipe:": b"not one row can be used",
        "socket:": b"release",
    }.items():
        assert any(place in name and words_ in data for name, data in seen.items()), f"no {words_!r} in {place}"
    assert any(b"appliance.flows.agent" in data for name, data in seen.items() if name.endswith("command"))

    assert unseen(traces, inputs) == []
    assert leaks([scanned, Path("/dev/shm")], traces, token_ids) == {}


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
    "import array, base64, bz2, gzip, json, lzma, os, socket, sqlite3, subprocess, sys, zlib\n"
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
    live(*map(Path, sys.argv[1:4]))
