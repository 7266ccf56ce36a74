"""What the ledger costs beside the same rows in plain tables, and what verifying and proving cost.

`python bench/ledger.py [--quick] [--json]`. Both sides alternate in one process, on the same engine with the same
settings. The PostgreSQL figures need its server programs; they start a server of their own on the same disk.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from figures import Figure, Report, arguments
from sqlalchemy import text

from appliance.errors import Busy
from appliance.events.catalog import event
from appliance.ledger import dialect
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import PolicyRow, RunRow
from appliance.ledger.transaction import Reading, Transaction
from tests import postgres

ACTOR = Actor("p-1", "")
UNTIL = {"until": "2026-01-01T08:00:00.000000Z"}
PLAIN = (
    "CREATE TABLE plain_policy (sha256 TEXT PRIMARY KEY, name TEXT, text TEXT, state TEXT)",
    "CREATE TABLE plain_event (id TEXT PRIMARY KEY, type TEXT, ts TEXT, subject TEXT, document TEXT)",
)
PLAIN_ROW = "INSERT INTO plain_policy VALUES (?, ?, ?, ?)"
PLAIN_EVENT = "INSERT INTO plain_event VALUES (?, ?, ?, ?, ?)"
DOCUMENT = json.dumps({"actor": "p-1", "facts": UNTIL, "software": "x" * 400})  # about as long as a leaf


class Sides:
    """A ledger and, on the same engine, the plain tables that a program without one would write."""

    def __init__(self, home: Path, urls: dict[str, str], plain_url: str, *, join: bool = False) -> None:
        self.place = home, urls, plain_url
        home.mkdir(parents=True, exist_ok=True)
        config = LedgerConfig(
            **urls,
            origin="bench.example/ledger",
            signing_dir=home / "signing",
            anchor=home / "anchor",
            body_public_key=bytes([9] + [0] * 31),
        )
        self.ledger = Ledger.open(config) if join else Ledger.create(config)
        self.plain = Database(plain_url, writable=True, create=not join)
        if join:
            return
        with self.plain.define() as connection:
            for statement in PLAIN:
                connection.execute(text(statement))
            if not urls["url"].startswith("sqlite"):  # what a plain program would not lock
                connection.execute(text("CREATE TABLE head (id INTEGER)"))

    def ledger_row(self) -> None:
        key = 2 * uuid.uuid4().hex
        with self.ledger.transaction(ACTOR) as tx:
            tx.policies.add(PolicyRow(sha256=key, name="n", text="x" * 300, state="active"))
            tx.append(event("policy.activated", {"name": "n", "sha256": key}))

    def plain_row(self) -> None:
        key = 2 * uuid.uuid4().hex
        event = (uuid.uuid4().hex, "key.unlocked", "2026-01-01T08:00:00.000000Z", key, DOCUMENT)
        with self.plain.write() as connection:  # as the ledger writes: past SQLAlchemy, in one round trip
            rows = [(PLAIN_ROW, (key, "n", "x" * 300, "active")), (PLAIN_EVENT, event)]
            dialect.of(connection).run(connection, rows)

    def ledger_batch(self, count: int = 100) -> None:
        with self.ledger.transaction(ACTOR) as tx:
            for _ in range(count):
                tx.append(event("key.unlocked", UNTIL))

    def plain_batch(self) -> None:
        with self.plain.write() as connection:
            self._events(connection, 100)

    def close(self) -> None:
        self.ledger.close()
        self.plain.close()

    @staticmethod
    def _events(connection: object, count: int) -> None:
        rows = [{"i": uuid.uuid4().hex, "d": DOCUMENT} for _ in range(count)]
        statement = "INSERT INTO plain_event VALUES (:i, 'key.unlocked', '2026-01-01T08:00:00.000000Z', NULL, :d)"
        connection.execute(text(statement), rows)  # type: ignore[attr-defined]


def sqlite_sides(home: Path) -> Sides:
    home.mkdir(parents=True, exist_ok=True)
    return Sides(home, {"url": f"sqlite:///{home / 'ledger.db'}"}, f"sqlite:///{home / 'plain.db'}")


@contextmanager
def server_in(base: Path) -> Iterator[postgres.Server | None]:
    """A server with its files under `base`; None, after saying why, where none can be had."""
    base.chmod(0o755)
    try:
        server = postgres.make(base)
    except postgres.Unavailable as reason:
        print(reason, file=sys.stderr)
        yield None
        return
    try:
        yield server
    finally:
        postgres.remove(server)


def postgres_sides(home: Path, server: postgres.Server) -> Sides:
    for name in ("ledger", "plain"):
        server.create(name)
    urls = {"url": server.url("ledger"), "owner_url": server.url("ledger", postgres.OWNER)}
    return Sides(home, urls, server.url("plain", postgres.OWNER))


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(first: Callable[[], None], second: Callable[[], None], repeats: int) -> list[tuple[float, float]]:
    for _ in range(5):
        first()
        second()
    return [(seconds(first), seconds(second)) for _ in range(repeats)]


def fsync_figure(home: Path, repeats: int) -> Figure:
    with open(home / "fsync", "wb") as file:

        def write() -> None:
            file.write(os.urandom(4096))
            file.flush()
            os.fsync(file.fileno())

        times = sorted(seconds(write) * 1000 for _ in range(repeats))
    spread = times[len(times) // 20], times[-len(times) // 20]
    return Figure(name="fsync_ms", value=median(times), unit="ms", repeats=repeats, spread=spread, note="4 KiB")


def cost_figures(name: str, sides: Sides, bar_ms: float, bar_batch: float, repeats: int) -> list[Figure]:
    """What a commit costs more than in plain tables, and entries a second in batches of a hundred."""
    rows = alternate(sides.ledger_row, sides.plain_row, repeats)
    added = sorted((ours - plain) * 1000 for ours, plain in rows)
    with_ledger, without = (median(column) * 1000 for column in zip(*rows, strict=True))
    batches = alternate(sides.ledger_batch, sides.plain_batch, max(20, repeats // 4))
    ours, plain = (sorted(100 / t for t in column) for column in zip(*batches, strict=True))
    return [
        Figure(
            name=f"{name}_added_ms",
            value=with_ledger - without,
            unit="ms",
            bar=bar_ms,
            repeats=repeats,
            spread=(added[len(added) // 4], added[-len(added) // 4]),
            peer="plain tables",
            note=f"median commit {with_ledger:.2f} ms, plain {without:.2f} ms; spread is the quartiles",
        ),
        Figure(
            name=f"{name}_batch100_per_s",
            value=median(ours),
            unit="entries/s",
            bar=bar_batch,
            better="higher",
            repeats=len(batches),
            spread=(ours[len(ours) // 4], ours[-len(ours) // 4]),
            peer="plain tables",
            note=f"plain {median(plain):.0f}/s; spread is the quartiles",
        ),
    ]


def decision_figure(name: str, sides: Sides, repeats: int) -> Figure:
    """What it costs a decision that all it reads is proved: 100 runs, and entries that came since the last decision."""
    run = RunRow(
        id="", name="run", dataset_id="ds", model_id="m", state="finished", spec_sha256="44" * 32,
        policy_sha256="55" * 32, plan="p" * 700, reserved_attempts=100, recorded_attempts=100, charged_attempts=100,
        epsilon_reserved="8", delta="0.00001",
    )  # fmt: skip
    for number in range(100):
        with sides.ledger.transaction(ACTOR) as tx:
            tx.runs.add(dataclasses.replace(run, id=f"run_{number:012x}"))
            tx.append(event("key.unlocked", UNTIL))
        sides.ledger_batch(4)

    def read(rows: Reading | Transaction) -> None:
        assert len(rows.runs.list()) == 100
        for gateway in (rows.datasets, rows.evaluations, rows.policies):
            gateway.list()

    def proved() -> None:
        with sides.ledger.transaction(ACTOR) as tx:
            read(tx)

    def believed() -> None:
        with sides.ledger._database.write() as connection:
            read(Reading(connection, None))

    taken = []
    for _ in range(5 + repeats):
        sides.ledger_batch(4)
        sides.ledger.sign()
        taken.append((seconds(proved) * 1000, seconds(believed) * 1000))
    with_proof, without = (median(column) for column in zip(*taken[5:], strict=True))
    added = sorted(ours - plain for ours, plain in taken[5:])
    return Figure(
        name=f"{name}_decision_ms",
        value=with_proof - without,
        unit="ms",
        bar=2.0,
        repeats=repeats,
        spread=(added[len(added) // 4], added[-len(added) // 4]),
        peer="the same rows, believed",
        note=f"100 runs, 4 new entries; median {with_proof:.2f} ms, believed {without:.2f} ms; spread is the quartiles",
    )


def decision_figures(root: Path, repeats: int) -> list[Figure]:
    """`decision_figure` on both engines."""
    sides = sqlite_sides(root / "deciding-sqlite")
    figures = [decision_figure("sqlite", sides, repeats)]
    sides.close()
    place = root / "deciding"
    place.mkdir()
    root.chmod(0o755)
    with server_in(place) as server:
        if server:
            sides = postgres_sides(place / "postgres", server)
            figures.append(decision_figure("postgres", sides, repeats))
            sides.close()
    return figures


def memory_figures(repeats: int) -> list[Figure]:
    """`cost_figures` on a file system in memory: a slow fsync, in steps of a timer, can hide what a commit adds."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return []
    root = Path(tempfile.mkdtemp(prefix="bench-ledger-", dir=memory))
    try:
        sides = sqlite_sides(root / "sqlite")
        figures = cost_figures("sqlite_memory", sides, 0.4, 10_000, repeats)[:1]
        sides.close()
        with server_in(root) as server:
            if server:
                sides = postgres_sides(root / "postgres", server)
                figures += cost_figures("postgres_memory", sides, 0.8, 8_000, repeats)[:1]
                sides.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return figures


def writers_figure(name: str, sides: Sides, writers: int, count: int) -> Figure:
    """Commits a second of several processes that write at once, each so many, and the longest that one of them took."""
    rates, longest = [], []
    for side in ("ledger", "plain"):
        words = ["--child", "write", json.dumps([str(sides.place[0]), *sides.place[1:]]), side, str(count // writers)]
        command = [sys.executable, __file__, *words]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(writers)
        ]
        for process in children:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        start = time.perf_counter()
        outputs = [process.communicate()[0] for process in started(children)]
        rates.append(count // writers * writers / (time.perf_counter() - start))
        longest.append(max(float(output) for output in outputs))
    return Figure(
        name=f"{name}_{writers}_writers_per_s",
        value=rates[0],
        unit="commits/s",
        better="higher",
        repeats=count,
        peer="plain tables",
        note=f"plain {rates[1]:.0f}/s; slowest commit {longest[0]:.0f} ms, plain {longest[1]:.0f} ms",
    )


def started(children: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Let them go all at once."""
    for process in children:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return children


def write_child(place: str, side: str, count: int) -> None:
    """One of several writers; a busy database is asked again, as a user would."""
    home, urls, plain_url = json.loads(place)
    sides = Sides(Path(home), urls, plain_url, join=True)
    work = sides.ledger_row if side == "ledger" else sides.plain_row
    print("ready", flush=True)
    sys.stdin.readline()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        while True:
            try:
                work()
                break
            except Busy:
                continue
        times.append((time.perf_counter() - start) * 1000)
    print(max(times), flush=True)
    os._exit(0)  # without signing, which is not what is measured


def traced(home: Path, side: str, count: int) -> int | None:
    """Fsyncs of a process that makes `count` commits, as strace counts them."""
    log = home / f"trace-{side}"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(log)]
    command += [sys.executable, __file__, "--child", side, str(home / f"traced-{side}"), str(count)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = log.read_text().splitlines()
    marks = [i for i, line in enumerate(lines) if "fsync(-1" in line.replace("fdatasync", "fsync")]
    return sum(1 for line in lines[marks[0] + 1 : marks[1]] if re.search(r"f(data)?sync\(", line))


def child(side: str, home: Path, count: int) -> None:
    """What is traced: the commits between two impossible fsyncs that mark them in the trace."""
    sides = sqlite_sides(home)
    work = sides.ledger_row if side == "ledger" else sides.plain_row
    for step in range(count + 1):
        if step in (0, count):
            mark()
        if step < count:
            work()
    sides.close()


def mark() -> None:
    """An fsync of nothing, which only the trace notices; Python itself would refuse the descriptor."""
    ctypes.CDLL(None).fsync(-1)


def fsync_difference(home: Path, server: postgres.Server | None, sides: Sides | None, count: int) -> Figure:
    counts = [traced(home, side, count) for side in ("ledger", "plain")]
    added, note = [], []
    if counts[0] is not None and counts[1] is not None:
        added.append((counts[0] - counts[1]) / count)
        note.append(f"SQLite {counts[0] / count:.2f} against {counts[1] / count:.2f} a commit, by strace")
    else:
        note.append("SQLite not run: no strace")
    if server is not None and sides is not None:
        found = []
        for work, database in ((sides.ledger_row, sides.ledger._database), (sides.plain_row, sides.plain)):
            before = wal_syncs(server, database)
            for _ in range(count):
                work()
            found.append((wal_syncs(server, database) - before) / count)
        added.append(round(found[0] - found[1], 1))
        note.append(f"PostgreSQL {found[0]:.2f} against {found[1]:.2f} a commit, by its own count")
    return Figure(
        name="added_fsyncs", value=max(added, default=-1), unit="a commit", bar=0, repeats=count, note="; ".join(note)
    )


def wal_syncs(server: postgres.Server, database: Database) -> int:
    with database.read() as connection:  # the server's process for this connection then reports what it did
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with server.connect("postgres") as raw:
        row = raw.execute("SELECT wal_sync FROM pg_stat_wal").fetchone()
    assert row is not None
    return int(str(row[0]))


def size_figures(home: Path, entries: int) -> list[Figure]:
    """Verifying and proving in a ledger of so many entries; a process of its own for each, to see its memory."""
    sides = sqlite_sides(home)
    while sides.ledger.sign().size < entries:
        sides.ledger_batch(10_000)
    size = sides.ledger.sign().size
    times = []
    for step in range(200):
        index = (step * 7919 * 613) % size
        times.append(seconds(lambda index=index: sides.ledger.prove(index) and None) * 1000)  # type: ignore[misc]
    proof = len(sides.ledger.prove(size // 3))
    sides.close()
    command = [sys.executable, __file__, "--child", "verify", str(home), "0"]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    scale = 1_000_000 / size
    cpu = [run["cpu"] * scale for run in runs]
    scaled = "" if size >= 1_000_000 else f"; measured on {size} entries and scaled"
    deep, wall = (median(run[name] for run in runs) * scale for name in ("deep", "wall"))
    return [
        Figure(
            name="verify_1m_s",
            value=median(cpu),
            unit="s of one core",
            bar=5.0,
            repeats=3,
            spread=(min(cpu), max(cpu)),
            note=f"wall {wall:.1f} s; pages and indexes {deep:.1f} s more{scaled}",
        ),
        Figure(
            name="verify_1m_rss_mib",
            value=max(run["rss"] for run in runs),
            unit="MiB",
            bar=150,
            repeats=3,
            note=f"of {size} entries",
        ),
        Figure(name="proof_bytes", value=proof, unit="bytes", bar=8000, note=f"both algorithms, {size} entries"),
        Figure(
            name="proof_generate_ms",
            value=median(times),
            unit="ms",
            bar=2.0,
            repeats=200,
            spread=(min(times), max(times)),
        ),
    ]


def verify_child(home: Path) -> None:
    config = LedgerConfig(
        f"sqlite:///{home / 'ledger.db'}", "bench.example/ledger", home / "signing", home / "anchor", bytes(32)
    )
    with LedgerReader.open(config) as ledger:
        wall, cpu = time.perf_counter(), time.process_time()
        found = ledger.verify(deep=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert found.ok
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak is not None
        rss = int(peak[1]) / 1024  # getrusage would tell the largest of this process and its parent
        start = time.process_time()
        ledger.verify(deep=True)
        deep = time.process_time() - start - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "rss": rss, "deep": max(0.0, deep)}))


def main() -> None:
    options = arguments(__doc__ or "")
    repeats, entries = (60, 40_000) if options.quick else (400, 1_000_000)
    report = Report(bench="ledger", quick=options.quick)
    root = Path(tempfile.mkdtemp(prefix="bench-ledger-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        report.figures.append(fsync_figure(root, repeats))
        report.figures += decision_figures(root, repeats)
        sides = sqlite_sides(root / "sqlite")
        report.figures += cost_figures("sqlite", sides, 0.4, 10_000, repeats)
        report.figures += [writers_figure("sqlite", sides, writers, 2 * repeats) for writers in (1, 4, 8)]
        sides.close()
        with server_in(root) as server:
            served = postgres_sides(root / "postgres", server) if server else None
            if served:
                report.figures += cost_figures("postgres", served, 0.8, 8_000, repeats)
                report.figures += [writers_figure("postgres", served, writers, 2 * repeats) for writers in (1, 4, 8)]
            report.figures.append(fsync_difference(root, server, served, 100))
            if served:
                served.close()
        report.figures += memory_figures(repeats)
        report.figures += size_figures(root / "large", entries)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    report.print(as_json=options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[2] == "verify":
            verify_child(Path(sys.argv[3]))
        elif sys.argv[2] == "write":
            write_child(sys.argv[3], sys.argv[4], int(sys.argv[5]))
        else:
            child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
