"""Secrets in the memory of processes: none dumps core before it reads one, and a passphrase that was used is gone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.isolation import calls, interpreter, kernel

NUMBERS = calls.numbers(kernel.machine())
SECRET = f"{os.urandom(12).hex()} caf\u00e9 {os.urandom(12).hex()}"

needs_setpriv = pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="not run: no setpriv here")

USES = """
import contextlib, sys
from appliance.cli import app
directory, verbs = sys.argv[1], sys.argv[2:]
with contextlib.redirect_stdout(sys.stderr):
    status = app.run(["--home", directory + "/home", *verbs, "--passphrase-file", directory + "/passphrase"])
print(status, flush=True)
sys.stdin.read()
"""
"""The command line in a process that goes on afterwards."""

AS_A_STRING = """
import sys
from pathlib import Path
from appliance.store import keyslots
text = Path(sys.argv[1], "passphrase").read_text().rstrip()
keyslots.create(Path(sys.argv[1], "keyslots.json"), text.encode())
del text
print(0, flush=True)
sys.stdin.read()
"""
"""What it would be otherwise."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "passphrase").touch(mode=0o600)
    (tmp_path / "passphrase").write_text(SECRET + "\n")
    return tmp_path


# --- core dumps -----------------------------------------------------------------------------------------------------

WITHOUT_TRACING = ("setpriv", "--inh-caps=-all", "--bounding-set=-sys_ptrace") if os.geteuid() == 0 else ()
"""Root may read all memory. Without this right it may read what an ordinary user may: that of his own processes."""


@contextmanager
def waiting_for_a_secret(command: list[str]) -> Iterator[int]:
    """Start a process that blocks where it reads its secret; its process id."""
    with subprocess.Popen([*WITHOUT_TRACING, *command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_it_reads(process)
            yield process.pid
        finally:
            process.kill()


def wait_until_it_reads(process: subprocess.Popen[bytes]) -> None:
    """Wait until it stays in openat, read or readv: on what nobody writes, and not on a slow disk, which is waited for
    in another state."""
    deadline, seen = time.monotonic() + 60, 0
    while seen < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        calls = {str(NUMBERS[name]) for name in ("openat", "read", "readv")}
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        reads = Path(f"/proc/{process.pid}/syscall").read_text().split()[0] in calls
        seen = seen + 1 if state == "S" and reads else 0
        time.sleep(0.02)


def is_open(pid: int) -> bool:
    """Tell whether another process of the same user may look into the memory of this one."""
    looks = f"open('/proc/{pid}/mem', 'rb')"
    return (
        subprocess.run([*WITHOUT_TRACING, sys.executable, "-c", looks], capture_output=True, check=False).returncode
        == 0
    )


def core_limit(pid: int) -> list[str]:
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4:6] for line in limits if line.startswith("Max core"))


@needs_setpriv
def test_the_command_line_dumps_no_core_when_it_reads_the_passphrase(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    options = ("--home", str(tmp_path / "home"), "init", "--passphrase-file", str(tmp_path / "pipe"))
    with waiting_for_a_secret(interpreter.module("appliance", *options)) as pid:
        assert core_limit(pid) in (["1", "1"], ["0", "0"])
        assert not is_open(pid)


@needs_setpriv
def test_the_key_agent_dumps_no_core_when_it_reads_the_root_key() -> None:
    with waiting_for_a_secret(interpreter.module("appliance.keyagent")) as pid:
        assert core_limit(pid) in (["1", "1"], ["0", "0"])
        assert not is_open(pid)


@needs_setpriv
def test_another_process_would_be_open() -> None:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and scope.read_text().strip() != "0":
        pytest.skip("not run: this kernel opens no process to others anyway")
    with waiting_for_a_secret(interpreter.python("-c", "import sys; sys.stdin.read()")) as pid:
        assert is_open(pid)


def test_core_dumps_are_turned_off_where_the_limit_is_nothing_already() -> None:
    """An ordinary user may not raise a limit that a service manager has set to 0."""
    script = (
        "import os, resource\nfrom appliance.isolation import process\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "os.geteuid() or os.setresuid(65534, 65534, 65534)\n"
        "process.deny_core_dumps()\nprint(process.core_dumps_denied())"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"True\n"


# --- what stays -----------------------------------------------------------------------------------------------------


def copies(script: str, *arguments: str) -> dict[str, int]:
    """Run a script until it has used the passphrase; how often its memory holds the passphrase then, how encoded."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        memory = b"\0".join(writable(process.pid))
        process.stdin.close()
    parts = {"first half": SECRET[:24], "second half": SECRET[-24:]}
    return {
        f"{part} in {encoding}": len(re.findall(re.escape(text.encode(encoding)), memory))
        for part, text in parts.items()
        for encoding in ("utf-8", "utf-16-le", "utf-32-le")
    }


def writable(pid: int) -> Iterator[bytes]:
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_ = line.split()
            if permissions.startswith("rw"):
                first, last = (int(bound, 16) for bound in span.split("-"))
                memory.seek(first)
                yield memory.read(last - first)


def test_a_passphrase_that_was_used_is_nowhere_in_memory(directory: Path) -> None:
    assert set(copies(USES, str(directory), "init").values()) == {0}
    assert set(copies(USES, str(directory), "key", "unlock").values()) == {0}
    subprocess.run(interpreter.module("appliance", "--home", str(directory / "home"), "key", "lock"), check=True)


def test_one_that_was_a_string_is_found(directory: Path) -> None:
    assert sum(copies(AS_A_STRING, str(directory)).values()) > 0
