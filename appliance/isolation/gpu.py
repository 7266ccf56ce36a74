"""NVIDIA GPUs of this machine, found without torch and without their driver: what a sandboxed job may open of them.

Every path, why it is needed and where that is known from: docs/adr/0011-a-gpu-in-the-sandbox.md. A sandboxed process
can make no device node and load no module, so what is missing is said before.
"""

from __future__ import annotations

import os
import re
import resource
import stat
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import WillNotFit

_ROOT = Path("/")
_CONTROL, _MEMORY = "nvidiactl", "nvidia-uvm"  # of the driver, and of its unified memory
_READ = ("proc/driver/nvidia", "sys/bus/pci/devices", "sys/devices", "etc/nvidia", "run/nvidia-persistenced")
_MAKE_NODES = "as root run `nvidia-modprobe -u -c=0`, or any CUDA program once; into a container pass the node"


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a job on a GPU gets beyond what every job gets.

    Attributes:
      devices: device nodes that it may open for reading, writing and ioctl.
      read: what it may read.
      ordinal: which of the visible GPUs its process uses; None starts no driver.
    """

    devices: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()
    ordinal: int | None = 0


def gpu(ordinal: int | None = 0, root: Path = _ROOT) -> Gpu:
    """Find what the sandbox must let through on this machine. Call `require` before.

    Args:
      ordinal: which of the visible GPUs; None is for a process that does not start the driver.
      root: where /dev, /proc and /sys lie; for tests.
    """
    optional = [root / "dev" / "nvidia-uvm-tools", *_instances(root)]
    devices = [root / "dev" / _CONTROL, root / "dev" / _MEMORY, *nodes(root), *optional]
    read = [*(root / name for name in _READ), *sorted((root / "sys" / "module").glob("nvidia*")), *_libraries()]
    existing = [[path for path in paths if path.exists()] for paths in (devices, read)]
    return Gpu(tuple(existing[0]), tuple(existing[1]), ordinal)


def nodes(root: Path = _ROOT) -> list[Path]:
    """List the device nodes of single GPUs, in the order of their numbers."""
    found = [path for path in (root / "dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("nvidia")))


def models(root: Path = _ROOT) -> dict[str, str]:
    """Name of the device node of each GPU that the driver lists in /proc, and the GPU's model; empty without /proc."""
    texts = [_text(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    return {f"nvidia{_field(text, 'Device Minor')}": _field(text, "Model") for text in texts}


def driver_version(root: Path = _ROOT) -> str:
    """Read the version of the kernel's driver; empty where /proc does not say it."""
    found = re.search(r"\s([0-9]+\.[0-9.]+)\s", _text(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def problems(root: Path = _ROOT) -> list[WillNotFit]:
    """Say what would keep the driver from starting in the sandbox, each with what to do about it; empty if nothing."""
    dev, found = root / "dev", []
    if not nodes(root) and not models(root) and not (dev / _CONTROL).exists():
        hint = "install the driver, pass /dev/nvidia* into the container, or use --device cpu"
        return [WillNotFit("there is no GPU: neither /proc/driver/nvidia/gpus nor /dev/nvidia0", hint=hint)]
    if not nodes(root):
        found.append(WillNotFit("the driver has no device node /dev/nvidia0 of a GPU", hint=_MAKE_NODES))
    for name in (_CONTROL, _MEMORY):
        if not (dev / name).exists():
            found.append(WillNotFit(f"the device node /dev/{name} is missing", hint=_MAKE_NODES))
        elif reason := _stale(dev / name, root):
            found.append(WillNotFit(f"/dev/{name} {reason}", hint=f"remove the node, then {_MAKE_NODES}"))
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        hint = "lift it (`ulimit -v unlimited`, LimitAS=infinity): the driver reserves far more than it uses"
        found.append(WillNotFit("the address space of processes is limited", hint=hint))
    return found


def require(root: Path = _ROOT) -> None:
    """Raise `WillNotFit` for the first of the `problems`, if there is one."""
    for problem in problems(root):
        raise problem


def _stale(node: Path, root: Path) -> str:
    """Say why a node does not lead to the driver; /proc/devices lists the numbers that drivers have now."""
    mode = node.stat()
    if not stat.S_ISCHR(mode.st_mode):
        return "is not a device node"
    names = {"nvidiactl": ("nvidia", "nvidiactl", "nvidia-frontend"), "nvidia-uvm": ("nvidia-uvm",)}[node.name]
    lines = [line.split() for line in _text(root / "proc/devices").splitlines()]
    numbers = {int(words[0]) for words in lines if len(words) == 2 and words[1] in names}
    if numbers and os.major(mode.st_rdev) not in numbers:
        return f"has the number {os.major(mode.st_rdev)}, and the driver has {', '.join(map(str, sorted(numbers)))}"
    return ""


def _instances(root: Path) -> list[Path]:
    """List the nodes of the instances of a divided GPU (MIG). Those for dividing and for watching it stay closed."""
    capabilities = root / "proc/driver/nvidia/capabilities"
    access = [path for part in ("", "ci*/") for path in sorted(capabilities.glob(f"gpu*/mig/gi*/{part}access"))]
    numbers = [_field(_text(path), "DeviceFileMinor") for path in access]
    return [root / "dev/nvidia-caps" / f"nvidia-cap{number}" for number in numbers if number]


def _libraries() -> list[Path]:
    """Find where the administrator says that libraries lie; the loader looks there first."""
    paths = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return [path for path in paths if path.is_absolute() and path.is_dir() and path.resolve() != _ROOT]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """Read the value of a line `name: value`; empty if there is none."""
    values = [line.partition(":")[2].strip() for line in text.splitlines() if line.partition(":")[0].strip() == name]
    return values[0] if values else ""
