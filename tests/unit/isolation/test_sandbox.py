from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.isolation import landlock

Script = Callable[..., str]
needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="not run: this kernel has no Landlock")

ENTER = """
def enter(network="required", files="preferred"):
    try:
        spec = IsolationSpec(network=network, files=files)
        return sandbox.enter(spec, sandbox.system_paths(), [Path(sys.argv[1]), Path("/dev/null")])
    except IsolationViolated as refusal:
        return refusal.message
"""


@needs_landlock
def test_the_report_says_what_was_reached(run: Script, tmp_path: Path) -> None:
    body = "report = enter('required', 'required'); print(report.network, report.files, report.core_dumps, sep=', ')"
    expected = f"denied by seccomp, restricted by landlock (abi {landlock.abi()}), off"
    assert run(ENTER + body, tmp_path) == expected


def test_what_a_machine_lacks_is_refused_only_if_it_is_required(run: Script, tmp_path: Path) -> None:
    lacks_files = ENTER + "landlock.abi = lambda: 0; print(getattr(r := enter(files=sys.argv[2]), 'files', r))"
    assert "requires that files be restricted" in run(lacks_files, tmp_path, "required")
    assert run(lacks_files, tmp_path, "preferred") == "not restricted"
    lacks_filter = ENTER + "kernel.machine = lambda: 'sparc'; print(getattr(r := enter(sys.argv[2]), 'network', r))"
    assert run(lacks_filter, tmp_path, "required") == "no filter of system calls for sparc"
    assert run(lacks_filter, tmp_path, "preferred") == "not restricted"


def test_a_filter_that_did_not_take_is_noticed(run: Script, tmp_path: Path) -> None:
    assert "not in force" in run(ENTER + "seccomp.restrict_calls = lambda **_: None; print(enter())", tmp_path)


@needs_landlock
def test_file_rules_that_did_not_take_are_noticed(run: Script, tmp_path: Path) -> None:
    broken = ENTER + "landlock.restrict_files = lambda read, write, **_: True; print(enter(files='required'))"
    assert "requires that files be restricted" in run(broken, tmp_path)


def test_threads_are_refused(run: Script, tmp_path: Path) -> None:
    body = "threading.Thread(target=threading.Event().wait, daemon=True).start(); print(enter())"
    assert run(ENTER + body, tmp_path) == "the sandbox must be entered before any thread is started"


def test_an_open_network_socket_is_refused_and_a_unix_one_is_not(run: Script, tmp_path: Path) -> None:
    body = "held = socket.socket(getattr(socket, sys.argv[2])); print(enter())"
    assert "a network socket is open" in run(ENTER + body, tmp_path, "AF_INET")
    assert "denied by seccomp" in run(ENTER + body, tmp_path, "AF_UNIX")


def test_secrets_of_the_system_and_of_users_are_out_of_reach(run: Script, tmp_path: Path) -> None:
    if not landlock.abi():
        pytest.skip("not run: this kernel has no Landlock")
    body = """
    enter()
    for path in ("/etc/shadow", "/etc/hosts", "/root", "/home", "/var/log", "/tmp", "/dev/shm", "/dev"):
        if refused(lambda: os.listdir(path) if os.path.isdir(path) else open(path).read()) not in (2, 13):
            print(path)
    """
    assert run(ENTER + "\n".join(line.removeprefix("    ") for line in body.splitlines()), tmp_path) == ""


TORCH = """
os.environ["TMPDIR"] = sys.argv[1]
os.environ["OMP_NUM_THREADS"] = "2"
assert not {"torch", "numpy"} & set(sys.modules)
enter("required", "required" if landlock.abi() else "preferred")
import torch
torch.set_num_threads(2)
product = torch.ones(700, 700) @ torch.ones(700, 700)
assert product[0, 0] == 700 and len(os.listdir("/proc/self/task")) > 1
for task in os.listdir("/proc/self/task"):
    status = Path("/proc/self/task", task, "status").read_text()
    assert "Seccomp:\\t2" in status and "NoNewPrivs:\\t1" in status
from safetensors.torch import load_file, save_file
save_file({"a": product}, Path(sys.argv[1], "a.safetensors"))
assert torch.equal(load_file(Path(sys.argv[1], "a.safetensors"))["a"], product)
layer = torch.nn.Linear(8, 8)
layer(torch.ones(4, 8)).sum().backward()
assert refused(lambda: socket.socket()) == 1
print("trained")
"""


def test_torch_works_inside_with_threads_and_files(run: Script, tmp_path: Path) -> None:
    assert run(ENTER + TORCH, tmp_path) == "trained"
