"""Every layer in a process of its own, with the control beside it that shows the same thing work without the layer."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.isolation import landlock

Script = Callable[..., str]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is Linux")
needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="not run: this kernel has no Landlock")

# --- process --------------------------------------------------------------------------------------------------------


def test_harden_takes_dumps_and_privileges(run: Script) -> None:
    assert run("print(process.core_dumps_denied(), kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS))") == "False 0"
    hardened = (
        "process.harden(os.getppid()); print(process.core_dumps_denied(), kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS))"
    )
    assert run(hardened) == "True 1"


def test_a_worker_whose_supervisor_is_gone_refuses_to_run(run: Script) -> None:
    body = """
    try:
        process.harden(os.getppid() + 1)
    except IsolationViolated as refusal:
        print(refusal.message)
    """
    assert run(body) == "the supervisor is gone"


CRASH = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
if sys.argv[1] == "hardened":
    process.deny_core_dumps()
if sys.argv[2] == "child":
    os.execv(sys.executable, [sys.executable, "-c", "import ctypes; ctypes.string_at(0)"])
ctypes.string_at(0)
"""


@pytest.mark.parametrize("who", ["itself", "child"])
def test_a_crash_leaves_no_core(tmp_path: Path, who: str, prelude: str) -> None:
    if (
        "/" in Path("/proc/sys/kernel/core_pattern").read_text()
        or "|" in Path("/proc/sys/kernel/core_pattern").read_text()
    ):
        pytest.skip("not run: this machine sends core files elsewhere")
    for mode in ("plain", "hardened"):
        directory = tmp_path / mode
        directory.mkdir()
        command = [sys.executable, "-c", prelude + CRASH, mode, who]
        assert subprocess.run(command, cwd=directory, check=False, capture_output=True).returncode == -signal.SIGSEGV
    if not list((tmp_path / "plain").iterdir()):
        pytest.skip("not run: core files are limited to nothing here")
    assert not list((tmp_path / "hardened").iterdir())


def test_a_worker_dies_with_its_supervisor(tmp_path: Path, prelude: str) -> None:
    worker = (
        "process.harden(os.getppid())\nPath(sys.argv[1], 'up').write_text(str(os.getpid()))\nthreading.Event().wait(60)"
    )
    supervisor = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    with subprocess.Popen([sys.executable, "-c", supervisor, prelude + worker, str(tmp_path)]) as parent:
        deadline = time.monotonic() + 120
        while not ((tmp_path / "up").exists() and (tmp_path / "up").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child = int((tmp_path / "up").read_text())
        os.kill(child, 0)
        parent.kill()
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # killed, and not yet collected by whoever inherited it
            return
        time.sleep(0.02)
    pytest.fail("the worker outlived its supervisor")


# --- seccomp --------------------------------------------------------------------------------------------------------

CALLS = """
numbers = seccomp._DENIED[kernel.machine()] | {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "pidfd_getfd": 438
}
before = {name: refused(lambda: kernel.syscall(number, -1, 0, 0, 0, 0, 0)) for name, number in numbers.items()}
seccomp.deny_network()
after = {name: refused(lambda: kernel.syscall(number, -1, 0, 0, 0, 0, 0)) for name, number in numbers.items()}
assert all(code == 1 for code in after.values()), after
allowed_before = {name for name, code in before.items() if code != 1}
assert allowed_before >= {"socket", "socketpair", "connect", "bind", "sendto", "sendmsg", "recvmsg", "accept4"}, before
print("ok")
"""


def test_every_denied_call_is_denied(run: Script) -> None:
    assert run(CALLS) == "ok"


def test_the_numbers_are_those_of_the_kernel_headers() -> None:
    import re

    from appliance.isolation import kernel, seccomp

    headers = {
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "/usr/include/asm-generic/unistd.h",
    }
    found = {machine: Path(path) for machine, path in headers.items() if Path(path).exists()}
    if not found:
        pytest.skip("not run: no kernel headers here")
    for machine, path in found.items():
        header = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text()))
        for name, number in seccomp._DENIED[machine].items():
            assert header[name] == str(number), (machine, name)
        assert header["seccomp"] == str(kernel.SECCOMP[machine])


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_program_decides_as_meant_on_both_machines(machine: str) -> None:
    """A small interpreter of the filter, since only one of the two machines is at hand."""
    import struct

    from appliance.isolation import kernel, seccomp

    program = [
        struct.unpack_from("=HBBI", seccomp._program(machine), i) for i in range(0, len(seccomp._program(machine)), 8)
    ]

    def decide(number: int, architecture: int) -> int:
        at, value = 0, 0
        while True:
            code, yes, no, constant = program[at]
            at += 1
            if code == 0x06:
                return int(constant)
            if code == 0x20:
                value = architecture if constant == 4 else number
            else:
                at += yes if (value == constant if code == 0x15 else value >= constant) else no

    own = kernel.ARCHITECTURES[machine]
    denied = {*seccomp._DENIED[machine].values(), 425, 426, 427, 438}
    for number in (*range(600), 2**31, 0x40000000 + 41):
        expected = 0x00050001 if number in denied or number >= 0x40000000 else 0x7FFF0000
        assert decide(number, own) == expected, number
        assert decide(number, 0x40000003) == 0x80000000


def decider(code: bytes, architecture: int) -> Callable[..., bool]:
    """A small interpreter of a filter: whether a call of this number with these arguments is let through."""
    program = [struct.unpack_from("=HBBI", code, i) for i in range(0, len(code), 8)]
    jumps = {0x15: int.__eq__, 0x35: int.__ge__}

    def decide(number: int, *arguments: int) -> bool:
        fields = {0: number, 4: architecture, 16: 0, 24: 0, 32: 0}
        fields |= {16 + 8 * i: argument for i, argument in enumerate(arguments)}
        at = value = 0
        while program[at][0] != 0x06:
            operation, yes, no, constant = program[at]
            if operation in jumps:
                at += yes if jumps[operation](value, constant) else no
            else:
                value = fields[constant] if operation == 0x20 else value & constant
            at += 1
        return program[at][3] == 0x7FFF0000

    return decide


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_program_for_ranks_leaves_tcp_and_the_list_of_interfaces(machine: str) -> None:
    from appliance.isolation import kernel, seccomp

    decide = decider(seccomp._program(machine, tcp=True), kernel.ARCHITECTURES[machine])
    calls = seccomp._DENIED[machine]
    left = {calls[name] for name in seccomp._OF_TCP}
    denied = {*calls.values(), 425, 426, 427, 438} - left - {calls["socket"]}
    for number in {*range(600), 0x40000000 + 41} - {calls["socket"]}:
        assert decide(number) == (number not in denied and number < 0x40000000), number
    flags = 0o2000000 | 0o4000  # close-on-exec, non-blocking
    for family, kind, protocol in itertools.product(range(46), range(1, 11), (0, 6, 15, 16)):
        expected = (family in (2, 10) and kind == 1) or (family == 16 and protocol == 0)
        assert decide(calls["socket"], family, kind, protocol) == expected
        assert decide(calls["socket"], family, kind | flags, protocol) == expected


def test_threads_that_run_already_are_filtered_too(run: Script) -> None:
    body = """
    gate, results = threading.Event(), []
    def late():
        gate.wait()
        results.append(refused(lambda: socket.socket()))
    threads = [threading.Thread(target=late) for _ in range(4)]
    for thread in threads: thread.start()
    if sys.argv[1] == "filtered": seccomp.deny_network()
    gate.set()
    for thread in threads: thread.join()
    print(results)
    """
    assert run(body, "plain") == "[0, 0, 0, 0]"
    assert run(body, "filtered") == "[1, 1, 1, 1]"


def test_children_are_filtered_too(run: Script) -> None:
    body = """
    if sys.argv[1] == "filtered": seccomp.deny_network()
    script = "import socket\\ntry:\\n    socket.socket(); print('made')\\nexcept PermissionError: print('refused')"
    print(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout)
    """
    assert run(body, "plain") == "made"
    assert run(body, "filtered") == "refused"


def test_an_unknown_machine_is_refused(run: Script) -> None:
    body = """
    kernel.machine = lambda: "riscv64"
    try:
        seccomp.deny_network()
    except IsolationViolated as refusal:
        print(refusal.message)
    """
    assert run(body) == "no network filter for riscv64"


# --- landlock -------------------------------------------------------------------------------------------------------

FILES = """
base = Path(sys.argv[1])
if sys.argv[2] == "restricted":
    read = [*sandbox.system_paths(), base / "read", base / "one.txt"]
    assert landlock.restrict_files(read, [base / "write", Path("/dev/null")])
def moved():
    (base / "write" / "new").write_text("x"); os.replace(base / "write" / "new", base / "write" / "final")
    os.fsync(os.open(base / "write", os.O_RDONLY)); os.truncate(base / "write" / "final", 0)
calls = {
    "read": lambda: (base / "read" / "file").read_text(),
    "one file": lambda: (base / "one.txt").read_text(),
    "write": lambda: (base / "write" / "file").write_text("x"),
    "replace": moved,
    "null": lambda: Path("/dev/null").write_text("x"),
    "random": lambda: open("/dev/urandom", "rb").read(4),
    "proc": lambda: Path("/proc/self/status").read_text(),
    "write to read": lambda: (base / "read" / "file2").write_text("x"),
    "write to one file": lambda: (base / "one.txt").write_text("x"),
    "read other": lambda: (base / "other" / "file").read_text(),
    "list other": lambda: os.listdir(base / "other"),
    "write other": lambda: (base / "other" / "new").write_text("x"),
    "remove other": lambda: (base / "other" / "file").unlink(),
    "link out": lambda: os.link(base / "other" / "file2", base / "write" / "linked"),
    "run written": lambda: subprocess.run([base / "write" / "tool"]),
    "make socket": lambda: socket.socket(socket.AF_UNIX).bind(str(base / "write" / "socket")),
}
for name, call in calls.items():
    print(name, "ok" if refused(call) == 0 else "refused", sep="=")
"""


@needs_landlock
def test_only_the_files_that_were_named_are_left(tmp_path: Path, run: Script) -> None:
    verdicts = {}
    for mode in ("plain", "restricted"):
        base = tmp_path / mode
        for name in ("read", "write", "other"):
            (base / name).mkdir(parents=True)
            (base / name / "file").write_text("text")
        (base / "other" / "file2").write_text("text")
        (base / "one.txt").write_text("text")
        (base / "write" / "tool").write_text("#!/bin/sh\n")
        (base / "write" / "tool").chmod(0o700)
        verdicts[mode] = dict(line.split("=") for line in run(FILES, base, mode).splitlines())
    assert set(verdicts["plain"].values()) == {"ok"}
    allowed = {name for name, verdict in verdicts["restricted"].items() if verdict == "ok"}
    assert allowed == {"read", "one file", "write", "replace", "null", "random", "proc"}


@needs_landlock
def test_landlock_alone_refuses_tcp_where_it_can(run: Script) -> None:
    if landlock.abi() < 4:
        pytest.skip("not run: this kernel's Landlock knows no TCP")
    body = """
    listener = socket.create_server(("127.0.0.1", 0))
    if sys.argv[1] == "restricted": landlock.restrict_files(sandbox.system_paths(), [])
    print(refused(lambda: socket.create_connection(listener.getsockname(), 2)))
    """
    assert run(body, "plain") == "0"
    assert run(body, "restricted") == "13"


def test_a_kernel_without_landlock_restricts_nothing_and_says_so(run: Script) -> None:
    assert (
        run("landlock.abi = lambda: 0; print(landlock.restrict_files([], []), os.listdir('/') != [])") == "False True"
    )
