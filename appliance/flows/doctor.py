"""`doctor`: is this machine fit? Plants leakers in a sandboxed process; looks at devices, memory, disk, libraries."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson

from appliance.errors import ApplianceError, IsolationViolated
from appliance.flows import gpus, orphans, passing
from appliance.flows.home import Home
from appliance.flows.run.hardware import available_memory, has_fast_bfloat16
from appliance.isolation import declaration, interpreter, loopback, tunnel
from appliance.store.agent import AgentClient

LIBRARIES = ("torch", "opacus", "peft", "transformers", "bitsandbytes", "cryptography", "sqlalchemy", "dp-accounting")
_ENTROPY, _SKEW_S = 256, 5.0
_DISCARD, _PEER_S = 9, 5.0
_ELSEWHERE = "not seen from here: look from its network namespace (`appliance --linked doctor` on a deployed server)"
UNWANTED = ("kernels", "datasets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding: ok, warning, blocked (a leaker was caught), leaked, missing, or refused (a GPU cannot be used)."""

    name: str
    verdict: str
    detail: str = ""


def examine(root: Path, *, sandboxed: bool = True) -> list[Check]:
    """Run every check. With `sandboxed` false the leakers run unhindered: the control that shows they can leak."""
    leakers, devices = list(_leakers([] if sandboxed else ["--control"])), list(_devices(sandboxed))
    if sandboxed and any(check.name == "GPU start" and check.verdict == "ok" for check in devices):
        leakers += _leakers(["--gpu"], " beside a GPU")
    return [*leakers, *_namespaces(), *_link(), *devices, *_resources(root), *_libraries(), *_home(root)]


def _leakers(options: list[str], where: str = "") -> Iterator[Check]:
    command = interpreter.module("appliance.isolation.leakers", *options)
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, cwd=interpreter.DIRECTORY)
    try:
        verdicts: dict[str, str] = orjson.loads(done.stdout)
    except orjson.JSONDecodeError:
        detail = f"the planted leakers could not be run in the sandbox{where}"
        yield Check(name=f"sandbox{where}", verdict="leaked", detail=detail)
        return
    for name, verdict in sorted(verdicts.items()):
        yield Check(name=f"leaker {name}{where}", verdict=verdict)


def _namespaces() -> Iterator[Check]:
    script = "from appliance.isolation import loopback; loopback.enter()"
    command = interpreter.python("-c", script)
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=interpreter.DIRECTORY)
    detail = "" if done.returncode == 0 else "user namespaces are not allowed; `train start --nproc` would refuse"
    yield Check(name="network of several ranks", verdict="warning" if detail else "ok", detail=detail)


def _link() -> Iterator[Check]:
    """Look at the link to other machines, where one is declared: what it is, and whether each of them answers."""
    try:
        declared = declaration.read()
        if declared is None:
            return
        if loopback.interfaces() == ["lo"]:
            yield Check(name="link", verdict="warning", detail=_ELSEWHERE)
            return
        end = tunnel.here(str(declared.address))
        reason = tunnel.objection(end)
        said = "" if reason else f"{declared.interface} is {tunnel.described(end)}"
    except IsolationViolated as refusal:
        yield Check(name="link", verdict="refused", detail=str(refusal))
        return
    yield Check(name="link", verdict="refused" if reason else "ok", detail=reason or said)
    for peer in map(str, declared.peers):
        answers = _answers(peer)
        detail = (
            "answers" if answers else f"nothing came back within {_PEER_S:g} s: is its link up, and ours known there?"
        )
        yield Check(name=f"link to {peer}", verdict="ok" if answers else "warning", detail=detail)


def _answers(peer: str) -> bool:
    """Whether a machine answers at all; that it refuses a connection is an answer."""
    try:
        socket.create_connection((peer, _DISCARD), _PEER_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def _devices(sandboxed: bool) -> Iterator[Check]:
    for step in gpus.examine(sandboxed=sandboxed):
        detail = f"{step.detail} ({step.hint})" if step.hint else step.detail
        verdict = "ok" if step.ok else "refused" if step.needed else "warning"
        yield Check(name=step.name, verdict=verdict, detail=detail)
    detail = "multiplied in hardware" if has_fast_bfloat16() else "not in hardware; float32 will be used"
    yield Check(name="bfloat16 on the CPU", verdict="ok" if has_fast_bfloat16() else "warning", detail=detail)


def _resources(root: Path) -> Iterator[Check]:
    memory = available_memory() >> 30
    yield Check(name="memory", verdict="ok" if memory >= 4 else "warning", detail=f"{memory} GiB available")
    place = root if root.exists() else root.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free >> 30
    yield Check(name="disk", verdict="ok" if free >= 5 else "warning", detail=f"{free} GiB free at {place}")
    swap = len(Path("/proc/swaps").read_text().splitlines()) > 1
    detail = "on: private data in memory can reach a disk; turn it off or encrypt it" if swap else "off"
    yield Check(name="swap", verdict="warning" if swap else "ok", detail=detail)
    entropy = int(Path("/proc/sys/kernel/random/entropy_avail").read_text())
    detail = f"{entropy} bits" if entropy >= _ENTROPY else f"{entropy} bits: the kernel cannot make keys yet; wait"
    yield Check(name="entropy", verdict="ok" if entropy >= _ENTROPY else "warning", detail=detail)
    yield _clock(root)
    yield Check(name="processors", verdict="ok", detail=f"{len(os.sched_getaffinity(0))}")


def _clock(root: Path) -> Check:
    """Compare the clock with what was written before: evidence for a key is judged by its age."""
    written = [
        path.stat().st_mtime for path in (Path(__file__), root / "register", root / "home.json") if path.exists()
    ]
    behind = max(written) - time.time()
    detail = (
        f"behind what was written here before, by {behind:.0f} s" if behind > _SKEW_S else "not behind what is here"
    )
    return Check(name="clock", verdict="warning" if behind > _SKEW_S else "ok", detail=detail)


def _libraries() -> Iterator[Check]:
    for name in LIBRARIES:
        try:
            yield Check(name=f"library {name}", verdict="ok", detail=version(name))
        except PackageNotFoundError:
            yield Check(name=f"library {name}", verdict="missing")
    for name in UNWANTED:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        yield Check(name=f"library {name}", verdict="warning", detail="fetches code or caches clear text; remove it")


def _home(root: Path) -> Iterator[Check]:
    if not (root / "home.json").exists():
        yield Check(name="home", verdict="warning", detail=f"none at {root}; `appliance init` makes one")
        return
    private = (root.stat().st_mode & 0o077) == 0
    detail = "readable by its owner only" if private else "readable by others: chmod 700"
    yield Check(name="home", verdict="ok" if private else "warning", detail=detail)
    yield Check(name="store", verdict="ok", detail=AgentClient(root / "agent" / "socket").status().state)
    yield from _database(root)
    yield from _orphans(root)


def _database(root: Path) -> Iterator[Check]:
    try:
        with Home.open(root).reader() as ledger:
            for found in ledger.findings():
                yield Check(name=found.name, verdict="ok" if found.good else "warning", detail=found.detail)
    except ApplianceError as failure:
        yield Check(name="database", verdict="warning", detail=str(failure))


def _orphans(root: Path) -> Iterator[Check]:
    try:
        home = Home.open(root)
        found = [*orphans.find(home), *passing.find(home)]
    except (ApplianceError, OSError):  # the check of the database says why
        return
    detail = (
        f"{len(found)} that nothing owns; the next ingest, import or job of that kind removes them" if found else ""
    )
    yield Check(name="leftovers", verdict="warning" if found else "ok", detail=detail)
