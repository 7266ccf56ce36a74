"""Build a release bundle: `make bundle`. The layout is docs/spec/release-bundle.md.

`python deploy/bundle/build.py --flavour cpu --key KEY --out DIR`. Two builds of one commit have the same bytes: wheels
are those of the lock, times are that of the commit, the archive is written header by header, Ed25519 signs the same way
twice. Needs the standard library, pip, ssh-keygen and (for PostgreSQL and nftables) apt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.bundle import debs, lock
from deploy.bundle.sbom import sbom

ROOT = Path(__file__).resolve().parents[2]
VERIFIER = ROOT / "deploy/ansible/roles/bundle/files/bundle_verify.py"
_LEFT_OUT = ("__pycache__", ".ansible", "molecule")


def verifier() -> ModuleType:
    """Load the stand-alone verifier, whose headers are the builder's too."""
    spec = importlib.util.spec_from_file_location("bundle_verify", VERIFIER)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, kw_only=True)
class Release:
    """What the manifest says of a release beside its files. `epoch` stands for "when", in seconds since 1970."""

    version: str
    flavour: str
    sequence: int
    min_from: int
    epoch: int
    valid_days: int

    def told(self) -> dict[str, Any]:
        """Give the manifest's fields without the files."""
        created = datetime.fromtimestamp(self.epoch, UTC)
        return {
            "schema": "appliance.bundle/1",
            "version": self.version,
            "flavour": self.flavour,
            "sequence": self.sequence,
            "min_from": self.min_from,
            "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
            "expires": f"{created + timedelta(days=self.valid_days):%Y-%m-%dT%H:%M:%SZ}",
        }


Content = Path | bytes


def assemble(release: Release, contents: dict[str, Content], key: Path, target: Path) -> str:
    """Write, sign and name a bundle of these contents; returns the SHA-256 of the file.

    Args:
      release: what it is.
      contents: for each path in the bundle the file, or its bytes.
      key: an OpenSSH private key; on a hardware token the private half never leaves it.
      target: the file, which appears whole.
    """
    verify = verifier()
    entries = [_entry(name, content) for name, content in sorted(contents.items())]
    manifest = json.dumps(release.told() | {"files": entries}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    signature = sign(manifest, key, verify.NAMESPACE)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "wb") as stream:
        for name, content in ((verify.MANIFEST, manifest), (verify.SIGNATURE, signature), *sorted(contents.items())):
            _write(verify, stream, name, content)
        stream.write(bytes(2 * verify.BLOCK))
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(target)
    with open(target, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entry(name: str, content: Content) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"path": name, "bytes": content.stat().st_size, "sha256": _digest(content)}


def _write(verify: ModuleType, stream: IO[bytes], name: str, content: Content) -> None:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    stream.write(verify.header(name, size))
    if isinstance(content, bytes):
        stream.write(content)
    else:
        with open(content, "rb") as file:
            while part := file.read(1 << 20):
                stream.write(part)
    stream.write(verify.padding(size))


def sign(content: bytes, key: Path, namespace: str) -> bytes:
    """Sign bytes with an OpenSSH key for one purpose, which the namespace names."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace]
    return subprocess.run(command, input=content, check=True, capture_output=True).stdout


def signers(key: Path) -> str:
    """Write the line of an allowed-signers file that lets this key sign releases and downgrades, and nothing else."""
    verify = verifier()
    public = " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])
    return f'{verify.IDENTITY} namespaces="{verify.NAMESPACE},{verify.DOWNGRADE_NAMESPACE}" {public}\n'


def playbooks() -> dict[str, Content]:
    """Collect the Ansible collection, as it lies in the repository."""
    top = ROOT / "deploy/ansible"
    files = [path for path in sorted(top.rglob("*")) if path.is_file() and not set(_LEFT_OUT) & set(path.parts)]
    return {f"ansible/{path.relative_to(top)}": path for path in files if not path.name.startswith(".")}


def gather(flavour: str, cache: Path, wheel: Path, epoch: int, *, packages: bool = True) -> dict[str, Content]:
    """Collect everything that a bundle of this flavour holds; what `cache` has is not fetched again."""
    wheels = cache / flavour
    lock.download(flavour, wheels)
    locked, controller = ((lock.LOCKS / f"{name}.txt").read_text() for name in (flavour, lock.CONTROLLER))
    wanted = set(re.findall("sha256:(.+)", locked + controller))
    digests = {path: _digest(path) for path in sorted(wheels.glob("*.whl"))}
    chosen = {path: digest for path, digest in digests.items() if digest in wanted} | {wheel: _digest(wheel)}
    own = f"appliance=={wheel.name.split('-')[1]} --hash=sha256:{chosen[wheel]}\n"
    contents: dict[str, Content] = {f"wheels/{path.name}": path for path in chosen}
    contents |= {"requirements.txt": (locked + own).encode(), "requirements-controller.txt": controller.encode()}
    contents |= playbooks()
    if packages:
        for place, files in debs.fetch(cache).items():
            contents |= {f"debs/{place}{debs.name(path)}": path for path in files}
            chosen |= {path: _digest(path) for path in files}
    return contents | {"sbom.cdx.json": sbom(wheel.name.split("-")[1], chosen, epoch)}


def _digest(path: Path) -> str:
    said = path.stat()
    return _digest_once(path, said.st_mtime_ns, said.st_size)


@cache
def _digest_once(path: Path, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Build one bundle and print its digest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flavour", choices=lock.WANTED, default="cpu")
    parser.add_argument("--key", type=Path, required=True, help="OpenSSH private key that signs the release")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--sequence", type=int, help="instead of that in release.json")
    options = parser.parse_args()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _commit_time())
    said = json.loads(Path(__file__).with_name("release.json").read_text())
    if options.sequence:
        said["sequence"] = options.sequence
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        wheel = lock.appliance_wheel(Path(directory), epoch)
        release = Release(version=wheel.name.split("-")[1], flavour=options.flavour, epoch=epoch, **said)
        target = options.out / f"appliance-{release.version}-{release.sequence}-{release.flavour}.bundle"
        digest = assemble(release, gather(options.flavour, options.cache, wheel, epoch), options.key, target)
    (options.out / "release.signers").write_text(signers(options.key))
    print(f"{digest}  {target}")


def _commit_time() -> str:
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
