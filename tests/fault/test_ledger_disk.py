"""A full disk and one that fails: the ledger says so with exit status 9 and has lost nothing that it acknowledged.

strace makes a system call on one of the ledger's files fail, and every later one of its kind, as a disk does that has
filled up or broken; or the file system is a small one, and really full.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

from appliance.errors import ApplianceError
from appliance.ledger.ledger import Ledger
from tests import postgres
from tests.e2e.conftest import Appliance
from tests.fault.ledger_writer import Uses
from tests.fault.test_ledger_crash import REPOSITORY, Acknowledged, check, on_server
from tests.fault.test_ledger_replay import PROGRAM, config_in, survives
from tests.postgres import Server

SAID = f"""
import sys
from appliance.errors import ApplianceError
try:
    exec({PROGRAM!r})
except ApplianceError as error:
    print(error, error.hint, sep="; ", file=sys.stderr)
    sys.exit(error.exit_status)
"""
FAULTS = {  # system calls, error, and about how many of these calls a run makes
    "a disk that fails": ("fsync,fdatasync", "EIO", 24),
    "a full disk": ("write,pwrite64", "ENOSPC", 90),
}
USES = ("append", "sign", "rotate", "append", "sign")


def files_of(home: Path) -> list[str]:
    """`-P` of strace for everything that the ledger writes, and only that."""
    names = ["ledger.db", "ledger.db-wal", ".anchor.partial"]
    names += [f"signing/next/.{name}.partial" for name in ("ed25519.seed", "mldsa44.seed", "verifier.keys")]
    return [word for name in ("", *names) for word in ("-P", str(home / name))]


def injecting(home: Path, calls: str, error: str, when: int) -> list[str]:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *files_of(home)]
    return [*command, "-e", f"inject={calls}:error={error}:when={when}+"]


def run(
    home: Path, prefix: list[str], told: Acknowledged, life: int, limit: int = 0
) -> subprocess.CompletedProcess[str]:
    """Let a process use the ledger until it ends by itself; what it acknowledged is noted."""
    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit else None
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SAID, str(home), str(life), *USES],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        preexec_fn=limited,
    )
    for line in done.stdout.splitlines():
        told.take(line)
    return done


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "home"
    directory.mkdir()
    Ledger.create(config_in(directory)).close()
    return directory


def traceable() -> None:
    try:
        done = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("not run: strace is not installed (apt install strace)")
    if done.returncode:
        pytest.skip("not run: strace may not trace here")


@pytest.mark.parametrize("name", FAULTS)
def test_it_says_so_and_loses_nothing(home: Path, name: str, stress_count: Callable[[int, int], int]) -> None:
    traceable()
    told, failed = Acknowledged(), 0
    calls, error, largest = FAULTS[name]
    for when in [1, *random.Random(8).sample(range(2, largest), stress_count(4, largest - 2))]:
        done = run(home, injecting(home, calls, error, when), told, when)
        assert done.returncode in (0, 9), done.stderr
        if done.returncode == 9:
            failed += 1
            assert "disk" in done.stderr
            assert "Traceback" not in done.stderr
        check_after(home, told)
    assert failed > 2
    survives(config_in(home), told)


def check_after(home: Path, told: Acknowledged) -> None:
    with Ledger.open(config_in(home)):  # nothing is repaired by hand
        pass
    check(config_in(home), told)


def test_files_that_may_not_grow(home: Path) -> None:
    """Without strace: the kernel refuses to let a file grow past a limit."""
    told, failed = Acknowledged(), 0
    for limit in (1_000, 40_000, 120_000, 400_000):
        done = run(home, [], told, limit, limit)
        assert done.returncode in (0, 9), done.stderr
        failed += done.returncode == 9
        check_after(home, told)
    assert failed >= 2


ON_A_DISK_WITHOUT_INODES = """
import json, shutil, subprocess, sys
from pathlib import Path
disk, home, after, program, free, *uses = sys.argv[1:]
disk = Path(disk)
options = ["-o", "size=8m,nr_inodes=100"]
if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", disk], capture_output=True).returncode:
    print(json.dumps("no mount"))
    sys.exit()
shutil.copytree(home, disk / "home")
fillers = []
try:
    while True:
        (disk / f"filler-{len(fillers)}").touch()
        fillers.append(disk / f"filler-{len(fillers)}")
except OSError:
    pass
for filler in fillers[:int(free)]:
    filler.unlink()
done = subprocess.run([sys.executable, "-c", program, disk / "home", free, *uses], capture_output=True, text=True)
shutil.copytree(disk / "home", after)
print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""


@pytest.mark.parametrize(("free", "status"), [(0, 9), (1, 9), (2, 9), (3, 9), (12, 0)])
def test_a_disk_without_inodes(home: Path, tmp_path: Path, free: int, status: int) -> None:
    """For real: so many files may still be made, and the write-ahead log is one, its shared memory another."""
    disk, after = tmp_path / "disk", tmp_path / "after"
    disk.mkdir()
    # In a mount namespace of its own, so that nothing stays mounted whatever happens.
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    script = [sys.executable, "-c", ON_A_DISK_WITHOUT_INODES]
    done = subprocess.run(
        [*namespace, *script, str(disk), str(home), str(after), SAID, str(free), *USES],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("not run: this machine permits no mount namespace")
    assert done.returncode == 0, done.stderr
    if (result := json.loads(done.stdout)) == "no mount":
        pytest.skip("not run: this machine permits no mount of tmpfs")
    found, said, error = result
    assert (found, "Traceback" in error) == (status, False), error
    assert status == 0 or "disk" in error
    told = Acknowledged()
    for line in said.splitlines():
        told.take(line)
    check_after(after, told)


@pytest.fixture
def crowded_server() -> Iterator[Server]:
    """A server on a file system of its own, of 80 MiB, mounted where `tests.adversarial.outside` looks away."""
    place = Path(tempfile.mkdtemp(prefix="disk-"))
    place.chmod(0o711)
    command = ["mount", "-t", "tmpfs", "-o", "size=80m,mode=755", "tmpfs", str(place)]
    try:
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("not run: mounting a small file system is not permitted here")
        try:
            server = postgres.make(place, made_with=("--wal-segsize=1",))
        except postgres.Unavailable as reason:
            pytest.skip(str(reason))
        yield server
        postgres.remove(server)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
        place.rmdir()


def test_a_server_whose_disk_is_full(
    crowded_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For real, under PostgreSQL: first a table cannot grow, then the server's own log, and the server gives up."""
    config, told = on_server(crowded_server, tmp_path)(0), Acknowledged()
    Ledger.create(config).close()
    filler = crowded_server.directory / "filler"
    with Ledger.open(config) as ledger:
        uses = Uses(ledger, config.anchor.parent, 1)
        uses.sign()
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert [failure_of(uses).exit_status for _ in range(3)] == [9, 9, 9]
        filled_log(crowded_server)
        assert failure_of(uses).exit_status in (11, 75)  # it cannot be reached, or is starting
        filler.unlink()
        with suppress(postgres.Unavailable):
            crowded_server.stop()
        crowded_server.start()
        for line in capsys.readouterr().out.splitlines():
            told.take(line)
        check(config, told)
        uses.sign()
    assert len(told.rows) > 1
    check(config, told)


def failure_of(uses: Uses) -> ApplianceError:
    """Use the ledger until that fails."""
    while True:
        try:
            uses.sign()
        except ApplianceError as error:
            return error


def filled_log(server: Server) -> None:
    """Write to a server's log until there is no room for another segment, which ends all of its processes."""
    message = "pg_logical_emit_message(false, '', repeat('x', 100000))"
    with server.connect("postgres") as raw, pytest.raises(psycopg.OperationalError):
        raw.execute(f"SELECT count({message}) FROM generate_series(1, 1000)".encode())


def test_the_command_line_ends_with_status_9(sealed: Appliance) -> None:
    traceable()
    home = sealed.home
    paths = [word for path in (home, *home.rglob("*")) for word in ("-P", str(path))]
    inject = ["-e", "inject=fsync,fdatasync:error=EIO:when=1+"]
    failing = Appliance(home, sealed.environment, ("strace", "-f", "-qq", "-o", "/dev/null", *paths, *inject))
    done = failing("key", "rotate", "--ledger", expect=9)
    assert "disk" in done.err
    assert sealed.json("ledger", "verify")["verdict"] == "intact"
    sealed("key", "rotate", "--ledger")
    document = sealed.json("ledger", "verify")
    assert document["verdict"] == "intact"
    assert len(document["key_sets"]) == 2
