"""A server for molecule: `make deploy-molecule ARGS="converge"`. What follows goes to molecule; "test" runs the whole sequence.

The server is bare each time. Its release is this checkout's, its ledger lies in SQLite.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.bundle import build, lock
from tests.deploy.conftest import PASSPHRASE
from tests.deploy.machine import ANSIBLE, CACHE, CONTROLLER, CONTROLLER6, ROOT, TARGET, Machine, machine


def main() -> int:
    with tempfile.TemporaryDirectory(dir=CACHE) as place, machine(Path(place) / "server", "mole") as server:
        environment = os.environ | {
            "APPLIANCE_INVENTORY": str(inventory(server, make_bundle(Path(place)))),
            "ANSIBLE_SSH_ARGS": " ".join((*server.ssh_options, "-o ControlMaster=auto", "-o ControlPersist=60s")),
            "PATH": f"{ROOT / '.venv-deploy/bin'}:{os.environ['PATH']}",
        }
        command = ["molecule", *(sys.argv[1:] or ["test"])]
        return server.controller(*command, env=environment, cwd=ANSIBLE, capture_output=False, timeout=3600).returncode


def make_bundle(place: Path) -> dict[str, str]:
    """Make a bundle of this checkout and a key for it; the variables that name them."""
    key, bundle, signers = place / "key", place / "bundle", place / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "release", "-f", str(key)], check=True)
    signers.write_text(build.signers(key))
    epoch = int(build._commit_time())
    wheel = lock.appliance_wheel(place, epoch)
    version = wheel.name.split("-")[1]
    release = build.Release(version=version, flavour="cpu", sequence=1, min_from=0, epoch=epoch, valid_days=365)
    build.assemble(release, build.gather("cpu", ROOT / "build" / "bundle", wheel, epoch), key, bundle)
    return {"bundle_file": str(bundle), "bundle_signers": str(signers)}


def inventory(server: Machine, variables: dict[str, str]) -> Path:
    """Write the inventory of one server."""
    passphrase = server.place / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(PASSPHRASE + "\n")
    given = variables | {"egress_admins": [CONTROLLER, CONTROLLER6], "store_passphrase_file": str(passphrase)}
    hosts = {server.name: {"ansible_host": TARGET, "ansible_user": "root"}}
    path = server.place / "hosts.json"
    path.write_text(json.dumps({"appliance": {"hosts": hosts, "vars": given}}))
    return path


if __name__ == "__main__":
    sys.exit(main())
