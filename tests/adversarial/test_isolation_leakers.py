"""The planted leakers, in the sandbox and out of it: unless the control leaks, the other verdict means nothing."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from appliance.errors import IsolationViolated
from appliance.isolation import interpreter, landlock, leakers
from appliance.isolation.leakers import LEAKERS, run_leakers
from tests.filtered import FILTER

ALWAYS_POSSIBLE = {
    "tcp4",
    "udp",
    "dns",
    "unix",
    "any-family",
    "socketpair",
    "python-child",
    "urllib",
    "write-outside",
    "read-outside",
    "device",
    "shared-memory",
    "other-process",
    "chmod",
    "chown",
    "utime",
    "hard-link",
    "planted-link",
    "planted-pipe",
    "sysv-memory",
    "sysv-message",
    "sysv-semaphore",
    "keyring",
    "signal",
    "limits",
    "openness",
    "survival",
}
"""The others depend on the machine: IPv6, root, io_uring, ptrace rules, 32-bit emulation, curl, libraries."""
FILES = {"write-outside", "read-outside", "device", "shared-memory", "other-process"}
BY_LANDLOCK = {"hard-link", "signal", "read-memory"}  # of a job on a GPU
CALLS = ALWAYS_POSSIBLE - FILES - BY_LANDLOCK
CALLS -= {
    "tcp4",
    "unix",
    "any-family",
    "python-child",
    "urllib",
    "planted-link",
    "planted-pipe",
}  # refused in more than one way


NETWORKS = {"tcp4", "udp", "dns", "any-family", "python-child", "urllib"}


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_nothing_gets_out_of_the_sandbox(gpu: bool) -> None:
    verdicts = run_leakers(gpu=gpu)
    assert set(verdicts) == set(LEAKERS)
    leaked = {name for name, verdict in verdicts.items() if verdict != "blocked"}
    assert leaked <= (set() if landlock.abi() else FILES | BY_LANDLOCK)


def test_without_the_sandbox_the_same_leakers_leak() -> None:
    verdicts = run_leakers(sandboxed=False)
    assert {name for name, verdict in verdicts.items() if verdict == "leaked"} >= ALWAYS_POSSIBLE


@pytest.mark.parametrize(
    ("layer", "gets_out"),
    [
        ("seccomp.restrict_calls = lambda **_: None; sandbox._probe_sockets = lambda: None", CALLS),
        ("landlock.restrict_files = lambda read, write, **_: True; sandbox._root_is_readable = lambda: False", FILES),
    ],
    ids=["no filter of calls", "no file rules"],
)
def test_a_sandbox_with_a_layer_taken_out_is_found_out(
    layer: str, gets_out: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of the leakers runs with one layer broken on purpose."""
    script = (
        "import sys; from appliance.isolation import landlock, leakers, sandbox, seccomp\n"
        f"{layer}\nleakers.main(['--inside', sys.argv[-1]])"
    )
    real = subprocess.run

    def broken(command: list[str], **options: object) -> object:
        if "--inside" in command:
            command = [sys.executable, "-c", script, command[-1]]
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(leakers.subprocess, "run", broken)
    verdicts = run_leakers()
    assert {name for name, verdict in verdicts.items() if verdict == "leaked"} >= gets_out


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_nothing_gets_out_of_the_sandbox_of_a_rank(gpu: bool) -> None:
    if not namespaces():
        pytest.skip("not run: this machine allows no user and network namespaces")
    verdicts = run_leakers(rank=True, gpu=gpu)
    assert set(verdicts) == set(LEAKERS)
    leaked = {name for name, verdict in verdicts.items() if verdict != "blocked"}
    assert leaked <= (set() if landlock.abi() else FILES | BY_LANDLOCK)


@pytest.mark.parametrize(
    ("layer", "gets_out"),
    [
        ("loopback.interfaces = lambda: ['lo']", {"tcp4"}),  # in the network of the host
        (
            "seccomp.restrict_calls = lambda **_: None; sandbox._probe_sockets = lambda **_: None",
            {"unix", *CALLS} - {"udp", "dns", "limits", "chown"},
        ),
    ],
    ids=["no namespace", "no filter of calls"],
)
def test_a_rank_with_a_layer_taken_out_is_found_out(
    layer: str, gets_out: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not namespaces():
        pytest.skip("not run: this machine allows no user and network namespaces")
    into = "" if "interfaces" in layer else "loopback.enter()\n"
    script = (
        "import sys; from appliance.isolation import leakers, loopback, sandbox, seccomp\n"
        f"{into}{layer}\nleakers.main(['--inside-rank', sys.argv[-1]])"
    )
    real = subprocess.run

    def broken(command: list[str], **options: object) -> object:
        if "--rank" in command:
            command = [sys.executable, "-c", script, command[-1]]
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(leakers.subprocess, "run", broken)
    verdicts = run_leakers(rank=True)
    assert {name for name, verdict in verdicts.items() if verdict == "leaked"} >= gets_out


def namespaces() -> bool:
    script = "from appliance.isolation import loopback; loopback.enter()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_leakers_that_cannot_run_are_not_taken_for_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(IsolationViolated):
        run_leakers()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is written for x86-64: not run")
def test_where_no_socket_of_a_network_can_be_opened_the_others_are_still_planted() -> None:
    """As in the appliance's own units, where `doctor` said that the leakers could not be run."""
    command = [sys.executable, "-c", FILTER, *interpreter.module("appliance.isolation.leakers")]
    verdicts = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert verdicts == run_leakers()
    control = json.loads(subprocess.run([*command, "--control"], capture_output=True, check=True, timeout=120).stdout)
    assert {name for name, verdict in control.items() if verdict == "leaked"} >= ALWAYS_POSSIBLE - NETWORKS


def test_the_command_prints_json() -> None:
    command = interpreter.module("appliance.isolation.leakers")
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout).keys() == LEAKERS.keys()
