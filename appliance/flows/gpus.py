"""GPUs, as `doctor` and whoever starts a job see them: tried in a sandboxed process, without torch and without data."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from appliance.errors import WillNotFit
from appliance.flows import launch
from appliance.isolation import gpu, gpu_probe, interpreter
from appliance.jobs.job import EngineOptions

_ROOT = Path("/")
_ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH", "PYTORCH_CUDA_ALLOC_CONF")
_SECONDS = 180  # a driver that nobody keeps awake takes some seconds for each GPU
_TREES = ("/dev", "/proc", "/sys", "/run", "/etc", "/var", "/tmp", "/opt", "/home", "/root")  # noqa: S108 - to be named
_LAYERS = {
    "files": "a file rule refuses it",
    "sockets": "the filter of system calls refuses it",
    "closing": "it needs a socket after its start",
    "hardening": "it does not bear that core dumps are denied",
}
_REASONS = {
    "ENOENT": "there is no such node",
    "EACCES": "its Unix permissions, or a file system mounted nodev, do not let this user open it",
    "EPERM": "a device filter of the control group does not let it be opened (DeviceAllow=, --device)",
    "ENXIO": "no driver answers behind it",
    "ENODEV": "no driver answers behind it",
    "EIO": "the driver cannot start the GPU: the kernel's log says why (NVRM, Xid)",
}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the probe: what was tried, whether it went well, what came of it, and whether training needs it."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    needed: bool = True


def require(engine: EngineOptions, root: Path = _ROOT, *, processes: int | None = None) -> None:
    """Refuse a job on GPUs that its worker could not use, while nothing is reserved and no key is asked for.

    Args:
      engine: of the job; one on the CPU is always right.
      root: where /dev, /proc and /sys lie; for tests.
      processes: how many of this machine get a GPU each; None is what the job says.

    Raises:
      WillNotFit: something is missing, or the driver does not work in the sandbox.
    """
    if engine.device != "cuda":
        return
    gpu.require(root)
    for step in _probe(root, ordinal=(processes or engine.nproc) - 1):
        if step.needed and not step.ok:
            raise WillNotFit(f"the GPU cannot be used: {step.name}: {step.detail}", hint=step.hint)


def examine(root: Path = _ROOT, *, sandboxed: bool = True) -> Iterator[Step]:
    """Try the GPUs for `doctor`. With `sandboxed` false the driver runs unhindered: the control."""
    problems = gpu.problems(root)
    if not gpu.nodes(root) and not gpu.models(root):
        yield from (Step("GPUs", False, problem.message, problem.hint, needed=False) for problem in problems)
        return
    yield Step("GPUs", True, f"{len(gpu.nodes(root))} found, driver {gpu.driver_version(root) or 'unknown'}")
    said = [f"{name}={os.environ[name]}" for name in _ENVIRONMENT if name in os.environ]
    yield Step("GPU environment", True, "; ".join(said) or "nothing is set")
    yield from (Step("GPU set-up", False, problem.message, problem.hint) for problem in problems)
    yield from _nodes(root)
    yield from _links(root)
    tried = _probe(root, without="" if sandboxed else "everything")
    yield from (Step(f"GPU {step.name}", step.ok, step.detail, step.hint, step.needed) for step in tried)
    if sandboxed and any(step.needed and not step.ok for step in tried):
        yield _culprit(root)


def _nodes(root: Path) -> Iterator[Step]:
    """Open each device node in the sandbox and out of it, so that the rule which refuses it has a name."""
    outside = {step.name: step for step in _probe(root, "--nodes", without="everything")}
    for step in _probe(root, "--nodes"):
        if step.name == "sandbox" and step.ok:
            continue
        bare = outside.get(step.name)
        if step.ok or bare is None:
            detail = step.detail
        elif bare.ok:
            detail = f"the file rules of the sandbox refuse it ({step.detail}), Unix permissions do not"
        else:
            detail = f"{_REASONS.get(bare.detail, 'it does not open')} ({bare.detail}{_owner(Path(step.name))})"
        yield Step(f"GPU node {step.name}", step.ok, detail, step.hint)


def _owner(node: Path) -> str:
    try:
        found = node.stat()
    except OSError:
        return ""
    return f"; mode {found.st_mode & 0o777:o}, owner {found.st_uid}:{found.st_gid}, this is user {os.geteuid()}"


def _links(root: Path) -> Iterator[Step]:
    """Look for /dev/char/MAJOR:MINOR, which the driver makes as root, and in the sandbox cannot."""
    if os.geteuid() != 0:
        return
    missing = [node for node in gpu.gpu(None, root).devices if not _link_of(node, root).exists()]
    if missing:
        detail = f"/dev/char leads to no {', '.join(node.name for node in missing)}; the driver is known to do without"
        yield Step("GPU links", False, detail, "any CUDA program makes them when root runs it once", needed=False)


def _link_of(node: Path, root: Path) -> Path:
    number = node.stat().st_rdev
    return root / "dev" / "char" / f"{os.major(number)}:{os.minor(number)}"


def _culprit(root: Path) -> Step:
    """Find which part of the sandbox keeps the driver from working: leave out one after another."""
    if not _works(root, without="everything"):
        return Step("GPU without the sandbox", False, "it does not work either: it is not the sandbox that refuses it")
    found = [name for name in _LAYERS if _works(root, without=name)]
    detail = "; ".join(_LAYERS[name] for name in found) or "more than one layer of the sandbox refuses it"
    if "files" in found:
        trees = [tree for tree in _TREES if Path(tree).is_dir() and _works(root, "--also", tree)]
        detail += f", beneath {' or '.join(trees)}" if trees else ", beneath more than one of the usual directories"
    return Step("GPU without the sandbox", False, f"it works: {detail}")


def _works(root: Path, *arguments: str, without: str = "") -> bool:
    return all(step.ok for step in _probe(root, *arguments, without=without) if step.needed)


def _probe(root: Path, *arguments: str, without: str = "", ordinal: int = 0) -> list[Step]:
    """Run `isolation.gpu_probe` with the environment of a worker; a step is added if it did not come to its end."""
    left_out = ["--without", without] if without else []
    with tempfile.TemporaryDirectory(prefix="gpu-") as directory:
        (Path(directory) / "tmp").mkdir()
        command = interpreter.module(gpu_probe.__name__, directory, "--root", str(root), "--ordinal", str(ordinal))
        try:
            done = subprocess.run(
                [*command, *left_out, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
                cwd=interpreter.DIRECTORY,
                env=launch.environment(Path(directory)),
            )
            out, ending = done.stdout, _ending(done.returncode, done.stderr)
        except subprocess.TimeoutExpired as slow:
            out, ending = slow.stdout or b"", f"it did not end within {_SECONDS} s"
    steps = [_step(line) for line in out.splitlines()]
    done_or_refused = steps and (steps[-1].name == "done" or not steps[-1].ok or "--nodes" in arguments)
    if ending or not done_or_refused:
        steps.append(Step("probe", False, ending or "it ended early"))
    return [step for step in steps if step.name != "done"]


def _ending(status: int, errors: bytes) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    last: Sequence[str] = errors.decode(errors="replace").strip().splitlines()
    return (last[-1] if last else f"it ended with {status}") if status else ""


def _step(line: bytes) -> Step:
    said = orjson.loads(line)
    return Step(said["step"], said["ok"], said["detail"], said.get("hint", ""), said["needed"])
