"""The Debian packages that a bare Debian 12 server lacks, fetched with apt, by what they are for.

A bare server is one with every package of priority required and important; what else the wanted packages need comes
along. Fetching needs apt and the network, on Debian 12.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WANTED = {
    "": ("nftables", "postgresql-15", "libgomp1"),
    "wireguard-tools/": ("wireguard-tools",),
    "wireguard-go/": ("wireguard-go",),
}
"""By directory in the bundle; what any server may need is at the top. llama.cpp's wheel brings no libgomp."""
_THERE = ("openssh-server", "python3", "dbus", "systemd-sysv")


def fetch(directory: Path) -> dict[str, list[Path]]:
    """Fetch the packages into `directory`, and return the files by directory; those that lie there already are used."""
    debs, status = directory / "debs", directory / "status"
    (debs / "partial").mkdir(parents=True, exist_ok=True)
    available = _available()
    status.write_text("")
    always = {name for (name, _), fields in available.items() if fields.get("Priority") in ("required", "important")}
    there = _plan(debs, status, [*sorted(always), *_THERE])
    status.write_text("\n\n".join(_installed(available[package]) for package in there) + "\n")
    return {place: _files(debs, status, packages) for place, packages in WANTED.items()}


def _files(debs: Path, status: Path, packages: Sequence[str]) -> list[Path]:
    wanted = {name for name, _ in _plan(debs, status, packages)}
    _apt(debs, status, "--download-only", packages)
    files = [path for path in sorted(debs.glob("*.deb")) if path.name.partition("_")[0] in wanted]
    if len(files) != len(wanted):
        sys.exit(f"of {len(wanted)} packages there are {len(files)} files: remove {debs} and try again")
    return files


def _plan(debs: Path, status: Path, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """List the packages that apt would install, given the status file: names and versions."""
    return re.findall(r"^Inst (\S+) \((\S+) ", _apt(debs, status, "--simulate", wanted), re.MULTILINE)


def _apt(debs: Path, status: Path, how: str, wanted: Sequence[str]) -> str:
    options = {"Dir::State::status": status, "Dir::Cache::archives": debs, "APT::Sandbox::User": "root"}
    command = ["apt-get", *(f"--option={name}={value}" for name, value in options.items())]
    command += [how, "--quiet", "--yes", "--no-install-recommends", "install", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    if done.returncode:
        sys.exit(f"apt-get failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _available() -> dict[tuple[str, str], dict[str, str]]:
    """Read what apt knows of every package that it could install."""
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    known = (dict(re.findall(r"^([A-Z][A-Za-z-]*): (.*)$", text, re.MULTILINE)) for text in listed.split("\n\n"))
    return {(fields["Package"], fields["Version"]): fields for fields in known if "Package" in fields}


def _installed(fields: dict[str, str]) -> str:
    """Write the entry of an installed package for dpkg's status file."""
    kept = ("Version", "Architecture", "Multi-Arch", "Depends", "Pre-Depends", "Provides")
    told = [f"{name}: {fields[name]}" for name in kept if name in fields]
    return "\n".join([f"Package: {fields['Package']}", "Status: install ok installed", *told, "Description: there"])


def name(path: Path) -> str:
    """Name a package in a bundle: as apt stores it, without the percent sign that stands for the colon of an epoch."""
    return path.name.replace("%3a", "~")
