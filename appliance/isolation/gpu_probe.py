"""What a job on a GPU would meet in its sandbox, tried out without torch and without data.

`python -m appliance.isolation.gpu_probe DIRECTORY` enters the sandbox as a worker would, with DIRECTORY to write in,
and prints a JSON line for each step as soon as it is done: a process that the driver crashes has said how far it came.
`--nodes` only opens the device nodes. `--without` leaves one layer of the sandbox out, `--also` lets one more tree
through: with these `doctor` finds what it is that refuses the driver.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson

from appliance.errors import ApplianceError
from appliance.isolation import cuda, gpu_trial, landlock, process, sandbox, seccomp
from appliance.isolation.gpu import Gpu, gpu
from appliance.jobs.job import IsolationSpec

_LIBRARIES = ("torch", "transformers", "peft", "opacus", "safetensors")
LAYERS = ("everything", "files", "sockets", "closing", "hardening")
"""What can be left out; "closing" is the filter after the driver's start, "hardening" the denial of core dumps."""


def main(arguments: list[str]) -> None:
    """Enter the sandbox and tell what works in it. Exits with 0 when it came to its end, whatever it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--ordinal", type=int, default=0)
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--without", choices=LAYERS)
    parser.add_argument("--also", type=Path, action="append", default=[])
    chosen = parser.parse_args(arguments)
    found = gpu(None if chosen.nodes else chosen.ordinal, chosen.root)
    libraries = {name: _origin(name) for name in _LIBRARIES}
    write = [chosen.directory, Path("/dev/null"), *chosen.also]
    if not _tell("sandbox" if chosen.nodes else "start", partial(_enter, found, write, chosen.without)):
        return
    if chosen.nodes:
        for node in found.devices:
            _tell(str(node), partial(_open, node))
        return
    driver = cuda.Driver()
    for name, step, needed in gpu_trial.steps(driver, chosen.ordinal):
        _tell(name, step, needed=needed)
    _tell("libraries", partial(_read, libraries), needed=False)
    _tell("done", lambda: "")


def _tell(name: str, step: Callable[[], str], *, needed: bool = True) -> bool:
    """Take a step and print what came of it; a step that is not `needed` is one that training could do without."""
    said: dict[str, object] = {"step": name, "needed": needed}
    try:
        said |= {"ok": True, "detail": step()}
    except ApplianceError as refusal:
        said |= {"ok": False, "detail": refusal.message, "hint": refusal.hint}
    except OSError as error:
        said |= {"ok": False, "detail": errno.errorcode.get(error.errno or 0, str(error))}
    sys.stdout.buffer.write(orjson.dumps(said) + b"\n")
    sys.stdout.buffer.flush()
    return bool(said["ok"])


def _enter(found: Gpu, write: list[Path], without: str | None) -> str:
    read = [*sandbox.system_paths(), *found.read]
    if without is None:
        report = sandbox.enter(IsolationSpec(), read, write, gpu=found)
        return f"network {report.network}; files {report.files}; core dumps {report.core_dumps}"
    kept = set(LAYERS) - ({*LAYERS} if without == "everything" else {without})
    if "hardening" in kept:
        process.deny_core_dumps()
    if "files" in kept:
        landlock.restrict_files(read, write, devices=found.devices, own_threads=True)
    if "sockets" in kept:
        seccomp.restrict_calls_until_the_driver_runs(tcp=False)
    if found.ordinal is not None:
        cuda.start(found.ordinal)
    if {"sockets", "closing"} <= kept:
        seccomp.restrict_calls(gpu=True)
    return f"without {without}"


def _open(node: Path) -> str:
    os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    return "opens for reading and writing"


def _origin(library: str) -> str | None:
    """Find where a library lies; it is not imported."""
    found = importlib.util.find_spec(library)
    return found.origin if found else None


def _read(origins: dict[str, str | None]) -> str:
    """Tell whether what a worker imports is installed where it looks, and where it may read."""
    for name, origin in origins.items():
        if origin is None:
            raise ApplianceError(f"{name} is not installed where a worker looks: PYTHONPATH does not reach it")
        try:
            Path(origin).read_bytes()
        except OSError as error:
            raise ApplianceError(f"{origin} may not be read in the sandbox ({error.strerror})") from None
    return f"torch is {origins['torch']}"


if __name__ == "__main__":
    main(sys.argv[1:])
