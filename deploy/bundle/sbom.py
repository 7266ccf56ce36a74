"""The bundle's list of parts in CycloneDX 1.6, from what the wheels and Debian packages say of themselves."""

from __future__ import annotations

import email
import json
import re
import subprocess
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID


def sbom(version: str, digests: dict[Path, str], epoch: int) -> bytes:
    """Describe wheels and packages, each with its digest.

    Args:
      version: of the appliance.
      digests: SHA-256 of each file.
      epoch: seconds since 1970 that stand for "when"; with the digests it decides every byte.
    """
    parts = sorted((_part(path, digest) for path, digest in digests.items()), key=lambda part: str(part["bom-ref"]))
    told = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "component": {"type": "application", "name": "appliance", "version": version, "bom-ref": "appliance"},
        },
        "components": parts,
    }
    told["serialNumber"] = f"urn:uuid:{UUID(_digest(told)[:32])}"
    return json.dumps(told, sort_keys=True, indent=1).encode() + b"\n"


def _digest(told: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _part(path: Path, digest: str) -> dict[str, Any]:
    name, version, licence, purl = _wheel(path) if path.suffix == ".whl" else _deb(path)
    part: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    return part | ({"licenses": [{"license": {"name": licence}}]} if licence else {})


def _wheel(path: Path) -> tuple[str, str, str, str]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        said = email.message_from_bytes(archive.read(name))
    licence = said["License-Expression"] or next(
        (line.rpartition("::")[2].strip() for line in said.get_all("Classifier", []) if line.startswith("License ::")),
        "",
    )
    project = re.sub(r"[-_.]+", "-", said["Name"]).lower()
    return said["Name"], said["Version"], licence, f"pkg:pypi/{project}@{said['Version']}"


def _deb(path: Path) -> tuple[str, str, str, str]:
    command = ["dpkg-deb", "--showformat=${Package}\n${Version}\n${Architecture}", "--show", str(path)]
    name, version, architecture = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return name, version, "", f"pkg:deb/debian/{name}@{version}?arch={architecture}&distro=bookworm"
