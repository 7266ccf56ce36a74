"""A PostgreSQL server of the tests' own: one cluster for a session, on a Unix socket, run by another user than root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

OWNER, APPLICATION, ERASER, SUPERUSER = "ledger_owner", "ledger_app", "ledger_eraser", "postgres"
# Everything as in production but small; fsync stays on, although the files may lie in memory.
SETTINGS = ("listen_addresses=''", "shared_buffers=32MB", "max_connections=60", "max_wal_size=256MB", "fsync=on")


class Unavailable(Exception):
    """No server can be had here, and why."""


@dataclass(frozen=True)
class Server:
    """A running server, by the directory of its socket and its files, and what it is started with."""

    directory: Path
    settings: tuple[str, ...] = SETTINGS

    def url(self, database: str, role: str = APPLICATION) -> str:
        return f"postgresql+psycopg://{role}@/{database}?host={self.directory}"

    def connect(self, database: str, role: str = SUPERUSER) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.directory), dbname=database, user=role, autocommit=True)

    def create(self, database: str, template: str = "prepared") -> None:
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {database} OWNER {OWNER} TEMPLATE {template} STRATEGY FILE_COPY")

    def drop(self, database: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    @property
    def postmaster(self) -> int:
        return int((self.directory / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        options = " ".join(f"-c {setting}" for setting in (*self.settings, f"unix_socket_directories={self.directory}"))
        data, log = self.directory / "data", self.directory / "log"
        _run(self.directory, "pg_ctl", "start", "-w", "-D", str(data), "-l", str(log), "-o", options)

    def kill(self) -> None:
        """SIGKILL to every process of the server, as a crash of the machine would be, and wait until they are gone."""
        parent = self.postmaster
        os.kill(parent, signal.SIGSTOP)  # no new children while they are counted
        _until(lambda: _state(parent) in "TZ")
        tree = [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]
        for process in tree:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _until(lambda: all(_state(process) == "Z" for process in tree))
        # Where nobody collects the dead, the number in these files still counts as a process.
        for lock in (self.directory / "data" / "postmaster.pid", self.directory / ".s.PGSQL.5432.lock"):
            lock.unlink()

    def stop(self, mode: str = "immediate") -> None:
        _run(self.directory, "pg_ctl", "stop", "-m", mode, "-D", str(self.directory / "data"))

    def forget_segments(self) -> None:
        """Leave no segments of its log in store, where it was stopped in order: new ones have to be made."""
        _run(self.directory, "pg_resetwal", "-D", str(self.directory / "data"))


def make(base: Path | None = None, settings: tuple[str, ...] = SETTINGS, made_with: tuple[str, ...] = ()) -> Server:
    """A new cluster, started, with its roles and a prepared template database; in memory where `base` is None.

    `made_with` are options of initdb.
    """
    memory = Path("/dev/shm")
    base = base or (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir()))
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir=base))
    try:
        own(directory)
        options = ("-U", SUPERUSER, "--auth=trust", "--no-sync", "--data-checksums", "--locale=C", "--encoding=UTF8")
        _run(directory, "initdb", "-D", str(directory / "data"), *options, *made_with)
        server = Server(directory, settings)
        server.start()
        with server.connect("postgres") as connection:
            for role in (OWNER, APPLICATION, ERASER):
                connection.execute(f"CREATE ROLE {role} LOGIN")
            connection.execute(f"CREATE DATABASE prepared OWNER {OWNER}")
        with server.connect("prepared") as connection:
            connection.execute("CREATE EXTENSION amcheck")
            connection.execute(f"GRANT EXECUTE ON FUNCTION bt_index_check(regclass, boolean) TO {OWNER}, {APPLICATION}")
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return server


def own(directory: Path) -> None:
    """Give a directory and all that is in it to the server, where it runs as another user than we."""
    if (account := _account()) is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)


def remove(server: Server) -> None:
    """Stop a server and delete its files."""
    server.stop()
    shutil.rmtree(server.directory, ignore_errors=True)


def _state(process: int) -> str:
    """The letter for a state in /proc; one that is gone is as one that nobody has collected yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _account() -> pwd.struct_passwd | None:
    """Who to run the server as, which refuses root; None where we are not root, or nobody else exists here."""
    mapped = int(Path("/proc/self/uid_map").read_text().split()[2])
    if os.geteuid() or mapped == 1:
        return None
    known = {user.pw_name: user for user in pwd.getpwall()}
    return known.get("postgres", known.get("nobody"))


def _program(name: str) -> str:
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(newest[-1]) if newest else shutil.which(name)
    if found is None:
        raise Unavailable(f"not run: {name} is not installed (apt install postgresql)")
    return found


def _run(directory: Path, program: str, *arguments: str) -> None:
    command = [_program(program), *arguments]
    identity: dict[str, Any] = {}
    if (account := _account()) is not None:
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    elif os.geteuid() == 0:  # root of a user namespace without other users: become one in a namespace below
        nobody = pwd.getpwnam("nobody")
        command = ["unshare", "-U", f"--map-user={nobody.pw_uid}", f"--map-group={nobody.pw_gid}", *command]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=120, check=False, **identity
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"not run: {program} cannot be started: {error}") from None
    if done.returncode:
        raise Unavailable(f"not run: {program} failed: {(done.stderr or done.stdout).strip()[-300:]}")
