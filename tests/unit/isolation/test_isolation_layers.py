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

ALLOW, EPERM, ENOSYS, ENOENT, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x00050002, 0x80000000
MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
NEWEST = 469  # of calls.py
CALLS = """
from appliance.isolation import calls
numbers = calls.numbers(kernel.machine())
denied = {*calls.DENIED, *calls.OF_TCP, *calls.ON_SOCKETS, *calls.ON_A_GPU, "socket"} & set(numbers)
harmless = denied - {"fork", "vfork", "vhangup", "reboot", "setsid", "sync", "kexec_load", "kexec_file_load"}
def refusals(names):
    return {name: refused(lambda: kernel.syscall(numbers[name], -1, 0, 0, 0, 0, 0)) for name in names}
before = refusals(harmless)
seccomp.restrict_calls()
after = refusals(denied)
assert set(after.values()) == {1}, after
known = {"socket", "connect", "sendmsg", "accept4", "chmod", "utimensat", "keyctl", "shmctl", "msgctl", "mq_unlink"}
assert 1 not in {before[name] for name in known}, before
print(len(after))
"""


def test_every_denied_call_is_denied(run: Script) -> None:
    assert int(run(CALLS)) > 150


def test_the_numbers_are_those_of_the_kernel_headers() -> None:
    import re

    from appliance.isolation import calls, kernel

    headers = {
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "/usr/include/asm-generic/unistd.h",
    }
    found = {machine: Path(path) for machine, path in headers.items() if Path(path).exists()}
    if not found:
        pytest.skip("not run: no kernel headers here")
    for machine, path in found.items():
        text = re.sub(r"__NR(3264)?_(fstatat64|fstatat)", "__NR_newfstatat", path.read_text())
        header = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
        for name in ("syscalls", "arch_specific_syscall", "sync_file_range2"):
            header.pop(name, None)
        of_64_bits = {name: number for name, number in header.items() if not 403 <= number <= 423}
        numbers, newest = calls.numbers(machine), max(header.values())
        assert {name: number for name, number in of_64_bits.items() if number <= NEWEST}.items() <= numbers.items()
        assert {name for name, number in numbers.items() if number <= newest} - set(header) <= {"uretprobe", "uprobe"}
        assert numbers["seccomp"] == kernel.SECCOMP[machine]


def decider(code: bytes, architecture: int) -> Callable[..., int]:
    """A small interpreter of a filter, since only one of the two machines is at hand: what it says of a call."""
    program = [struct.unpack_from("=HBBI", code, i) for i in range(0, len(code), 8)]
    jumps = {0x15: int.__eq__, 0x35: int.__ge__}

    def decide(number: int, *arguments: int) -> int:
        fields = {0: number, 4: architecture} | {16 + 4 * i: 0 for i in range(12)}
        fields |= {16 + 8 * i: argument & 0xFFFFFFFF for i, argument in enumerate(arguments)}
        fields |= {20 + 8 * i: argument >> 32 & 0xFFFFFFFF for i, argument in enumerate(arguments)}
        at = value = 0
        while program[at][0] != 0x06:
            operation, yes, no, constant = program[at]
            if operation in jumps:
                at += yes if jumps[operation](value, constant) else no
            else:
                value = fields[constant] if operation == 0x20 else value & constant
            at += 1
        return int(program[at][3])

    return decide


@MACHINES
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("tcp", [False, True], ids=["alone", "rank"])
def test_the_program_decides_by_the_tables_on_both_machines(machine: str, gpu: bool, tcp: bool) -> None:
    from appliance.isolation import calls, kernel, seccomp

    code = seccomp._program(machine, seccomp._Rules(tcp=tcp, gpu=gpu))
    decide, numbers = decider(code, kernel.ARCHITECTURES[machine]), calls.numbers(machine)
    allowed = {*calls.ALLOWED, *(calls.ON_A_GPU if gpu else ()), *(calls.ON_SOCKETS if gpu or tcp else ())}
    allowed |= set(calls.OF_TCP) if tcp else set()
    for name, number in numbers.items():
        if name not in calls.CHECKED:
            assert decide(number) == (ALLOW if name in allowed else ENOSYS if name == "clone3" else EPERM), name
    for number in {*range(1200), 2**31, 2**32 - 1, *(0x40000000 + number for number in range(600))}:
        if number not in numbers.values():
            assert decide(number) == ENOSYS, number
        assert decider(code, 0x40000003)(number) == KILL  # the calls of 32-bit programs
    assert max(numbers.values()) == NEWEST
    assert len(numbers) == len(set(numbers.values()))


CHECKED = {  # call: arguments that a job on the CPU may give; that one on a GPU may give too; that none may
    "clone": ([(0x3D0F00,)], [(0x1200011,)], [(0x10000011,), (0x3D0F00 | 0x40000000,), (0x02000000,)]),
    "kill": ([("me", 0)], [(1, 9), (0, 9), (2**32 - 1, 9)], []),
    "tgkill": ([("me", 0, 0)], [(1, 1, 9)], []),
    "sched_setaffinity": ([(0, 8, 1), ("me", 8, 1)], [(1, 8, 1)], []),
    "prlimit64": ([(0, 7, 0, 1), ("me", 7, 0, 1)], [(0, 4, 1 << 32, 0), ("me", 7, 1, 0)], [(1, 7, 1), (1, 7, 0)]),
    "prctl": ([(15, 1), (38, 1), (3,)], [], [(1, 0), (4, 1), (0x59616D61, -1 & 0xFFFFFFFF)]),
    "fcntl": ([(3, 1), (3, 4, 1), (3, 6, 1), (3, 1030, 0)], [], [(3, 8, 1), (3, 1024, 0), (3, 1026, 1)]),
    "ioctl": (
        [(3, 0x5401), (3, 0x5413)],
        [(3, 0xC020462A), (3, 0x30000001), (3, 37)],
        [(3, 0x40086602), (3, 0x401C5820), (3, 0x40806685), (3, 0x5412), (3, 0x40049409), (3, 0xC0045877)],
    ),
}


@MACHINES
@pytest.mark.parametrize("tcp", [False, True], ids=["alone", "rank"])
def test_calls_that_may_reach_out_are_told_apart_by_their_arguments(machine: str, tcp: bool) -> None:
    from appliance.isolation import calls, kernel, seccomp

    def decide(gpu: bool, name: str, arguments: tuple[int | str, ...]) -> int:
        code = seccomp._program(machine, seccomp._Rules(tcp=tcp, gpu=gpu))
        given = [os.getpid() if argument == "me" else int(argument) for argument in arguments]
        return decider(code, kernel.ARCHITECTURES[machine])(calls.numbers(machine)[name], *given)

    assert set(CHECKED) | {"socket"} == set(calls.CHECKED)
    for name, (everybody, on_gpu, nobody) in CHECKED.items():
        assert {decide(gpu, name, given) for given in everybody for gpu in (False, True)} == {ALLOW}, name
        assert {decide(True, name, given) for given in on_gpu} <= {ALLOW}, name
        assert {decide(False, name, given) for given in on_gpu} <= {EPERM}, name
        assert {decide(gpu, name, given) for given in nobody for gpu in (False, True)} <= {EPERM}, name


@MACHINES
def test_the_program_for_ranks_leaves_tcp_and_the_list_of_interfaces(machine: str) -> None:
    from appliance.isolation import calls, kernel, seccomp

    for tcp in (False, True):
        decide = decider(seccomp._program(machine, seccomp._Rules(tcp=tcp)), kernel.ARCHITECTURES[machine])
        number, flags = calls.numbers(machine)["socket"], 0o2000000 | 0o4000  # close-on-exec, non-blocking
        for family, kind, protocol in itertools.product(range(46), range(1, 11), (0, 6, 15, 16)):
            left = tcp and ((family in (2, 10) and kind == 1) or (family == 16 and protocol == 0))
            assert decide(number, family, kind, protocol) == (ALLOW if left else EPERM)
            assert decide(number, family, kind | flags, protocol) == (ALLOW if left else EPERM)


def test_threads_that_run_already_are_filtered_too(run: Script) -> None:
    body = """
    gate, results = threading.Event(), []
    def late():
        gate.wait()
        results.append(refused(lambda: socket.socket()))
    threads = [threading.Thread(target=late) for _ in range(4)]
    for thread in threads: thread.start()
    if sys.argv[1] == "filtered": seccomp.restrict_calls(gpu=len(sys.argv) > 2)
    gate.set()
    for thread in threads: thread.join()
    print(results)
    """
    assert run(body, "plain") == "[0, 0, 0, 0]"
    assert run(body, "filtered") == "[1, 1, 1, 1]"


def test_children_are_filtered_too(run: Script) -> None:
    body = """
    if sys.argv[1] == "filtered": seccomp.restrict_calls(gpu=len(sys.argv) > 2)
    script = "import socket\\ntry:\\n    socket.socket(); print('made')\\nexcept PermissionError: print('refused')"
    print(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout)
    """
    assert run(body, "plain") == "made"
    assert run(body, "filtered", "on a GPU") == "refused"


def test_a_job_on_the_cpu_starts_no_process_and_no_program(run: Script) -> None:
    body = """
    seccomp.restrict_calls()
    ways = (os.fork, lambda: os.posix_spawn("/bin/true", ["true"], {}), lambda: os.execv("/bin/true", ["true"]))
    print([refused(way) for way in ways], refused(lambda: subprocess.run(["/bin/true"])))
    thread = threading.Thread(target=print, args=("a thread runs",))
    thread.start(); thread.join()
    """
    assert run(body).splitlines() == ["[1, 1, 1] 1", "a thread runs"]


def test_an_unknown_machine_is_refused(run: Script) -> None:
    body = """
    kernel.machine = lambda: "riscv64"
    try:
        seccomp.restrict_calls()
    except IsolationViolated as refusal:
        print(refusal.message)
    """
    assert run(body) == "no filter of system calls for riscv64"


def test_a_process_with_a_limit_of_memory_gets_no_more(run: Script) -> None:
    body = """
    process.limit_memory(256 << 20)
    process.limit_memory(512 << 20)  # cannot be raised again
    kept = bytearray(64 << 20)
    try:
        bytearray(384 << 20)
    except MemoryError:
        print("refused")
    """
    assert run(body) == "refused"


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
