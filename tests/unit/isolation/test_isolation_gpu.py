"""A GPU in the sandbox, with stand-in device nodes and a stand-in driver: what is opened, and what stays closed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import WillNotFit
from appliance.isolation import gpu, landlock, seccomp
from tests import gpus as standin
from tests.unit.isolation.test_isolation_layers import ALLOW, ENOENT, EPERM, MACHINES, decider

Script = Callable[..., str]
needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="not run: this kernel has no Landlock")

ENTER = """
import errno, fcntl
from dataclasses import replace
from appliance.isolation import cuda, gpu
ROOT, INSIDE = Path(sys.argv[1]), Path(sys.argv[2])

def enter(found, ranks=False):
    return sandbox.enter(IsolationSpec(files="required"), sandbox.system_paths(), [INSIDE, Path("/dev/null")],
                         gpu=found, ranks=ranks)

def opening(path, flags=os.O_RDWR):
    try:
        held = os.open(path, flags)
    except OSError as error:
        return errno.errorcode[error.errno]
    try:
        fcntl.ioctl(held, 0x5401, bytes(64))
    except OSError as error:
        return "EACCES on ioctl" if error.errno == errno.EACCES else "open"
    return "open"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> standin.StandIn:
    made = standin.make(tmp_path / "standin")
    made.start(monkeypatch)
    (tmp_path / "inside").mkdir()
    return made


# --- what is found, and what is missing -----------------------------------------------------------------------------


def test_gpus_are_found_by_their_nodes_and_named_by_proc(stand_in: standin.StandIn) -> None:
    standin.make_node(stand_in.root / "dev" / "nvidia10")
    standin.make_node(stand_in.root / "dev" / "nvidia2")
    for name in ("nvidia-modeset", "nvidia-nvswitch0", "nvidia0x"):
        standin.make_node(stand_in.root / "dev" / name)
    assert [path.name for path in gpu.nodes(stand_in.root)] == ["nvidia0", "nvidia2", "nvidia10"]
    assert gpu.models(stand_in.root) == {"nvidia0": "Stand-in GPU"}
    assert gpu.driver_version(stand_in.root) == "580.159.04"
    opened = {path.name for path in gpu.gpu(root=stand_in.root).devices}
    assert opened == {"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia2", "nvidia10"}
    assert not gpu.problems(stand_in.root)


def test_a_container_without_proc_is_no_machine_without_a_gpu(stand_in: standin.StandIn) -> None:
    (stand_in.root / "proc").rename(stand_in.root / "elsewhere")
    assert gpu.models(stand_in.root) == {}
    assert not gpu.problems(stand_in.root)


@pytest.mark.parametrize(
    ("missing", "said", "advice"),
    [
        (standin.NODES, "there is no GPU", "--device cpu"),
        (("nvidia-uvm",), "/dev/nvidia-uvm is missing", "nvidia-modprobe -u -c=0"),
        (("nvidiactl",), "/dev/nvidiactl is missing", "nvidia-modprobe"),
        (("nvidia0",), "no device node /dev/nvidia0", "nvidia-modprobe"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(
    tmp_path: Path, missing: tuple[str, ...], said: str, advice: str
) -> None:
    root = standin.make(tmp_path / "standin", without=missing).root
    if missing == standin.NODES:
        (root / "proc/driver/nvidia/gpus/0000:01:00.0/information").unlink()
    with pytest.raises(WillNotFit, match=said) as refusal:
        gpu.require(root)
    assert advice in refusal.value.hint


def test_nothing_else_is_needed_than_what_is_required(tmp_path: Path) -> None:
    root = standin.make(tmp_path / "standin", without=("nvidia-uvm-tools",)).root
    gpu.require(root)
    assert len(gpu.gpu(root=root).devices) == 3


def test_a_node_that_leads_to_another_driver_is_noticed(stand_in: standin.StandIn) -> None:
    (stand_in.root / "proc/devices").write_text("Character devices:\n  195 nvidia\n511 nvidia-uvm\n")
    said = [problem.message for problem in gpu.problems(stand_in.root)]
    assert len(said) == 2
    assert all("has the number 1, and the driver has" in message for message in said)
    (stand_in.root / "dev/nvidia-uvm").unlink()
    (stand_in.root / "dev/nvidia-uvm").write_text("")
    assert "/dev/nvidia-uvm is not a device node" in [problem.message for problem in gpu.problems(stand_in.root)]


def test_a_limited_address_space_is_noticed(run: Script, stand_in: standin.StandIn) -> None:
    body = """
    import resource
    from appliance.isolation import gpu
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
    print([problem.message for problem in gpu.problems(Path(sys.argv[1]))])
    """
    assert run(body, stand_in.root) == "['the address space of processes is limited']"


def test_of_a_divided_gpu_the_instances_are_opened_and_nothing_that_divides_it(stand_in: standin.StandIn) -> None:
    for path, number in (
        ("mig/config", 1),
        ("mig/monitor", 2),
        ("gpu0/mig/gi1/access", 12),
        ("gpu0/mig/gi1/ci0/access", 13),
        ("fabric-mgmt", 3),
    ):
        capability = stand_in.root / "proc/driver/nvidia/capabilities" / path
        capability.parent.mkdir(parents=True, exist_ok=True)
        capability.write_text(f"DeviceFileMinor: {number}\nDeviceFileMode: 256\nDeviceFileModify: 1\n")
        (stand_in.root / "dev/nvidia-caps").mkdir(exist_ok=True)
        standin.make_node(stand_in.root / f"dev/nvidia-caps/nvidia-cap{number}")
    opened = {path.name for path in gpu.gpu(root=stand_in.root).devices if "caps" in str(path)}
    assert opened == {"nvidia-cap12", "nvidia-cap13"}


def test_libraries_are_read_where_the_administrator_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}::/:relative:/no/such/directory")
    assert [path for path in gpu.gpu().read if path == tmp_path or path == Path("/")] == [tmp_path]


# --- file rules -----------------------------------------------------------------------------------------------------


@needs_landlock
def test_a_job_on_a_gpu_opens_its_nodes_and_no_other(run: Script, stand_in: standin.StandIn, tmp_path: Path) -> None:
    standin.make_node(stand_in.root / "dev" / "nvidia-modeset")
    standin.make_node(tmp_path / "other")
    body = """
    enter(gpu.gpu(None, ROOT))
    print(*(opening(ROOT / "dev" / name) for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0")))
    others = (ROOT / "dev/nvidia-modeset", sys.argv[3], "/dev/full", "/dev/shm/x", "/dev/kvm")
    print(*(opening(path) for path in others))
    made = opening(ROOT / "dev/nvidia9", os.O_RDWR | os.O_CREAT)
    print(made, refused(lambda: os.mknod(INSIDE / "node", 0o20666, 259)))
    """
    mine, others, made = run(
        ENTER + _undented(body), stand_in.root, tmp_path / "inside", tmp_path / "other"
    ).splitlines()
    assert mine == "open open open open"
    assert set(others.split()) <= {"EACCES", "ENOENT"}
    assert others.startswith("EACCES EACCES EACCES")
    assert made.split()[0] == "EACCES"
    assert made.split()[1] in ("1", "13")


@needs_landlock
def test_a_job_on_the_cpu_opens_none(run: Script, stand_in: standin.StandIn, tmp_path: Path) -> None:
    body = """
    nodes = gpu.gpu(None, ROOT).devices
    enter(None)
    print(*(opening(node, flags) for node in nodes for flags in (os.O_RDWR, os.O_RDONLY)))
    """
    assert run(ENTER + _undented(body), stand_in.root, tmp_path / "inside") == " ".join(["EACCES"] * 8)


@pytest.mark.skipif(landlock.abi() < 5, reason="not run: this kernel's Landlock (before ABI 5) has no rule for ioctl")
def test_ioctl_is_a_right_of_its_own(run: Script, stand_in: standin.StandIn, tmp_path: Path) -> None:
    body = """
    landlock._DEVICE &= ~landlock._IOCTL_DEV
    enter(gpu.gpu(None, ROOT))
    print(opening(ROOT / "dev/nvidia0"))
    """
    assert run(ENTER + _undented(body), stand_in.root, tmp_path / "inside") == "EACCES on ioctl"


THREAD = """
def name_threads(paths, flags):
    codes = []
    def work():
        task = threading.get_native_id()
        for path in paths:
            def write():
                held = os.open(path.format(process=os.getpid(), task=task, parent=os.getppid()), flags)
                os.write(held, b"named")
                os.close(held)
            codes.append(refused(write))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return codes
OWN = ("/proc/self/task/{task}/comm", "/proc/{process}/task/{task}/comm")
OTHERS = ("/proc/{parent}/task/{parent}/comm", "/proc/{parent}/oom_score_adj", "/proc/self/oom_score_adj",
          "/proc/self/comm")
"""


@needs_landlock
@pytest.mark.parametrize("user", ["self", "nobody"])
def test_threads_may_be_named_and_nothing_else_in_proc_changed(
    run: Script, stand_in: standin.StandIn, tmp_path: Path, user: str
) -> None:
    """For a plain user too, whose /proc/self belongs to root once core dumps are denied (PR_SET_DUMPABLE)."""
    if user == "nobody" and os.geteuid() != 0:
        pytest.skip("not run: becoming another user takes root")
    become = "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n" if user == "nobody" else ""
    body = """
    process.deny_core_dumps(); process.deny_new_privileges()
    given = [path for path in (Path("/proc"), Path("/usr"), Path("/lib"), Path("/lib64")) if path.exists()]
    landlock.restrict_files(given, [], own_threads=sys.argv[3] == "gpu")
    print(name_threads(OWN, os.O_RDWR) + name_threads(OWN, os.O_WRONLY | os.O_TRUNC), name_threads(OTHERS, os.O_RDWR))
    held = [refused(lambda: os.readlink(f"/proc/self/fd/{name}")) or os.readlink(f"/proc/self/fd/{name}")
            for name in range(3, 9)]
    print(f"/proc/{os.getpid()}/task" in held)
    """
    script = ENTER + THREAD + become + _undented(body)
    on_gpu = run(script, stand_in.root, tmp_path / "inside", "gpu").splitlines()
    assert on_gpu[0] == "[0, 0, 0, 0] [13, 13, 13, 13]"
    assert on_gpu[1] == "True", "/proc makes a new inode, and the rule is void, once nobody holds the directory"
    assert run(script, stand_in.root, tmp_path / "inside", "cpu").startswith("[13, 13, 13, 13] [13, 13, 13, 13]")


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: becoming another user takes root")
def test_a_plain_user_without_core_dumps_still_reads_what_the_driver_reads_of_itself(run: Script) -> None:
    body = """
    os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
    process.deny_core_dumps()
    reads = ("maps", "status", "stat", "cmdline", "mountinfo", "cgroup", "limits", "numa_maps")
    print([refused(lambda: open(f"/proc/self/{name}").read()) for name in reads])
    print(refused(lambda: os.listdir("/proc/self/fd")), refused(lambda: os.listdir("/proc/self/task")),
          refused(lambda: os.stat("/proc/self/ns/pid")), refused(lambda: os.readlink("/proc/self/exe")))
    print([refused(lambda: open(f"/proc/self/{name}", "rb").read(1)) for name in ("environ", "mem", "pagemap")])
    """
    assert run(body).splitlines() == ["[0, 0, 0, 0, 0, 0, 0, 0]", "0 0 0 0", "[13, 13, 13]"]


# --- sockets --------------------------------------------------------------------------------------------------------


@MACHINES
@pytest.mark.parametrize("tcp", [False, True])
def test_the_drivers_filter_leaves_a_unix_socket_that_reaches_nobody(machine: str, tcp: bool) -> None:
    from appliance.isolation import calls, kernel

    rules, numbers = seccomp._Rules(tcp=tcp, gpu=True, driver=True), calls.numbers(machine)
    decide = decider(seccomp._program(machine, rules), kernel.ARCHITECTURES[machine])
    for name in calls.OF_TCP:
        left = ALLOW if tcp or name in ("bind", "listen") else ENOENT if name == "connect" else EPERM
        assert decide(numbers[name]) == left, name
    for name, number in numbers.items():
        if name not in (*calls.OF_TCP, *calls.CHECKED):
            left = name in {*calls.ALLOWED, *calls.ON_A_GPU, *calls.ON_SOCKETS}
            assert (decide(number) == ALLOW) == left, name
    for family in range(46):
        for kind in range(1, 11):
            for protocol in (0, 6, 16):
                expected = family == 1 and kind in (1, 5)
                expected |= tcp and ((family in (2, 10) and kind == 1) or (family == 16 and protocol == 0))
                for flags in (0, 0o2004000):
                    decision = decide(numbers["socket"], family, kind | flags, protocol)
                    assert decision == (ALLOW if expected else EPERM)


WINDOW = """
outside = sys.argv[3]
seccomp.restrict_calls_until_the_driver_runs(tcp=False)
def unix(kind=socket.SOCK_SEQPACKET):
    return socket.socket(socket.AF_UNIX, kind)
print([refused(lambda: unix(kind)) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)])
print([refused(lambda: socket.socket(family)) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)])
print(refused(lambda: unix(socket.SOCK_STREAM).connect(outside)), refused(socket.socketpair))
listening = unix()
listening.bind(chr(0) + sys.argv[4])
listening.listen()
print("listening", flush=True)
sys.stdin.readline()
print(refused(listening.accept), refused(lambda: os.read(listening.fileno(), 10)),
      refused(lambda: listening.send(b"x")))
seccomp.restrict_calls(gpu=True)
print([refused(lambda: unix(kind)) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)],
      refused(lambda: listening.bind(chr(0) + "again")), refused(listening.listen),
      refused(lambda: listening.connect(outside)))
"""


def test_while_the_driver_starts_nothing_goes_out_and_nothing_comes_in(prelude: str, tmp_path: Path) -> None:
    name = f"gpu-test-{os.getpid()}-{threading.get_native_id()}"
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind(str(tmp_path / "outside"))
        outside.listen()
        command = [
            sys.executable,
            "-c",
            prelude + WINDOW,
            str(tmp_path),
            str(tmp_path),
            str(tmp_path / "outside"),
            name,
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            lines = [process.stdout.readline().strip() for _ in range(4)]
            assert lines == ["[0, 0, 1]", "[1, 1, 1]", "2 1", "listening"]
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:  # it can knock, and is not heard
                peer.connect("\0" + name)
                peer.send(b"instructions")
                process.stdin.write("\n")
                process.stdin.flush()
                lines = process.stdout.read().splitlines()
    assert lines[0] == "1 107 1"
    assert lines[1] == "[1, 1] 1 1 1"


# --- the driver -----------------------------------------------------------------------------------------------------


@needs_landlock
def test_a_driver_starts_in_the_sandbox_of_a_job_on_a_gpu(
    run: Script, stand_in: standin.StandIn, tmp_path: Path
) -> None:
    body = """
    report = enter(gpu.gpu(0, ROOT))
    print(report.network, report.files.replace(str(landlock.abi()), "N"), report.core_dumps, sep="; ")
    tasks = [Path("/proc/self/task", task) for task in os.listdir("/proc/self/task")]
    print(sorted((task / "comm").read_text().strip() == "cuda-standin" for task in tasks))
    print(all("Seccomp:\\t2" in (task / "status").read_text() for task in tasks))
    print(refused(lambda: socket.socket(socket.AF_UNIX)), refused(lambda: socket.socket(socket.AF_INET)))
    print(cuda.Driver().text("cuDeviceGetName", 0))
    """
    printed = run(ENTER + _undented(body), stand_in.root, tmp_path / "inside").splitlines()
    assert printed[0] == "denied by seccomp; restricted by landlock (abi N), but for the GPU; off"
    assert printed[1:] == ["[False, True]", "True", "1 1", "Stand-in GPU"]


@needs_landlock
@pytest.mark.parametrize(
    "closed",
    [
        "gpu.Gpu(devices=(), read=found.read)",
        "replace(found, devices=found.devices[:2])",
        "replace(found, read=())",
    ],
    ids=["no node", "not the GPU's", "no library"],
)
def test_a_driver_that_is_refused_something_says_what_it_refuses(
    run: Script, stand_in: standin.StandIn, tmp_path: Path, closed: str
) -> None:
    body = f"""
    from appliance.errors import WillNotFit
    found = gpu.gpu(0, ROOT)
    try:
        enter({closed})
    except WillNotFit as refusal:
        print(refusal.message, refusal.hint)
    """
    said = run(ENTER + _undented(body), stand_in.root, tmp_path / "inside")
    assert "the GPU driver" in said
    assert "cuInit: CUDA_ERROR" in said or "cannot be loaded" in said
    assert "`appliance doctor`" in said


NAMELESS = (
    "real = landlock.restrict_files; landlock.restrict_files = lambda *a, **k: real(*a, **k | {'own_threads': False})"
)


@needs_landlock
@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        ("seccomp.restrict_calls_until_the_driver_runs = lambda **_: seccomp.restrict_calls(gpu=True)", True),
        (NAMELESS, True),
        ("", False),
    ],
    ids=["no socket", "no names of threads", "as it is"],
)
def test_what_is_let_through_is_needed(
    run: Script, stand_in: standin.StandIn, tmp_path: Path, layer: str, refused: bool
) -> None:
    """The rules of a job on the CPU do not do: that is why there are others."""
    body = f"""
    from appliance.errors import WillNotFit
    {layer}
    try:
        enter(gpu.gpu(0, ROOT))
        print("started")
    except WillNotFit as refusal:
        print(refusal.message)
    """
    said = run(ENTER + _undented(body), stand_in.root, tmp_path / "inside")
    assert ("CUDA_ERROR_OPERATING_SYSTEM (304)" in said) == refused
    assert (said == "started") != refused


@needs_landlock
def test_torch_works_behind_a_started_driver(run: Script, stand_in: standin.StandIn, tmp_path: Path) -> None:
    body = """
    os.environ |= {"TMPDIR": sys.argv[2], "OMP_NUM_THREADS": "2"}
    enter(gpu.gpu(0, ROOT))
    import torch
    torch.set_num_threads(2)
    layer = torch.nn.Linear(700, 700)
    layer(torch.ones(700, 700)).sum().backward()
    print(layer.weight.grad[0, 0].item(), len(os.listdir("/proc/self/task")) > 2)
    """
    assert run(ENTER + _undented(body), stand_in.root, tmp_path / "inside") == "700.0 True"


def test_a_process_too_many_is_told_so(run: Script, stand_in: standin.StandIn, tmp_path: Path) -> None:
    body = """
    from appliance.errors import WillNotFit
    try:
        enter(gpu.gpu(1, ROOT))
    except WillNotFit as refusal:
        print(refusal.message)
    """
    said = run(ENTER + _undented(body), stand_in.root, tmp_path / "inside")
    assert said == "process 1 of this machine has no GPU of its own"


def test_a_rank_starts_its_driver_too(run: Script, stand_in: standin.StandIn, tmp_path: Path) -> None:
    body = """
    from appliance.isolation import loopback
    try:
        loopback.enter()
    except IsolationViolated:
        print("none")
        raise SystemExit
    report = enter(gpu.gpu(0, ROOT), ranks=True)
    print(report.network == sandbox.LOOPBACK_ONLY, refused(lambda: socket.socket(socket.AF_UNIX)),
          refused(lambda: socket.socket(socket.AF_INET).close()))
    """
    said = run(ENTER + _undented(body), stand_in.root, tmp_path / "inside")
    if said == "none":
        pytest.skip("not run: no user and network namespaces here")
    assert said == "True 1 0"


def _undented(body: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in body.splitlines())
