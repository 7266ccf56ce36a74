"""What only the server knows before an installation, as one line of JSON. Reads; changes nothing."""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import time

PROGRAMS = ("nft", "ssh-keygen", "systemd-creds", "systemd-run", "unshare", "apt-get")
LANDLOCK_CREATE_RULESET = 444


def _systemd():
    done = subprocess.run(["systemctl", "--version"], capture_output=True, text=True)
    running = os.path.isdir("/run/systemd/system")
    return int(done.stdout.split()[1]) if running and done.returncode == 0 else 0


def _entropy():
    with open("/proc/sys/kernel/random/entropy_avail") as file:
        return int(file.read())


def _system():
    with open("/etc/os-release") as file:
        said = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    return " ".join(said.get(name, "").strip('"') for name in ("ID", "VERSION_ID")) + " " + platform.machine()


def _memory():
    with open("/proc/meminfo") as file:
        return int(next(line for line in file if line.startswith("MemTotal:")).split()[1]) >> 10


def _wireguard():
    """Try whether the kernel makes such an interface, in a namespace that is gone at once."""
    command = ["unshare", "-n", "ip", "link", "add", "wg0", "type", "wireguard"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _free(path):
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free >> 20


print(
    json.dumps(
        {
            "system": _system(),
            "systemd": _systemd(),
            "missing": [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None],
            "python": list(sys.version_info[:2]),
            "landlock": ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, 0, 1),
            "free_mib": min(_free("/opt/appliance"), _free("/srv/appliance")),
            "memory_mib": _memory(),
            "time": int(time.time()),
            "entropy": _entropy(),
            "wireguard": _wireguard(),
            "installed": os.path.exists("/opt/appliance/current"),
        }
    )
)
