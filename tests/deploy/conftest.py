"""One bare server for all tests of this directory, and bundles for it. The tests run in the order of the file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.bundle import build, lock
from tests.deploy import machine
from tests.deploy.machine import CACHE, Machine

PASSPHRASE = "mistletoe-harbour-quartz-lantern"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a machine unless it is asked for, and put the rest into the order of their files."""
    ours = [item for item in items if item.get_closest_marker("deploy")]
    if not config.getoption("--deploy"):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="not run: `make deploy-test` runs it"))
    order = {item: (item.path, int(item.function.__code__.co_firstlineno)) for item in ours}  # type: ignore[attr-defined]
    items[:] = [item for item in items if item not in order] + sorted(ours, key=order.__getitem__)


@pytest.fixture(scope="session")
def release_key() -> Path:
    """The key that signs the bundles of the tests."""
    key = CACHE / "release-key"
    CACHE.mkdir(parents=True, exist_ok=True)
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "release", "-f", str(key)], check=True)
    (CACHE / "release.signers").write_text(build.signers(key))
    return key


@pytest.fixture(scope="session")
def bundles(release_key: Path) -> dict[str, Path]:
    """Bundles of this checkout: "first", and "second", which follows it."""
    epoch = int(build._commit_time())
    with tempfile.TemporaryDirectory() as directory:
        wheel = lock.appliance_wheel(Path(directory), epoch)
        contents = build.gather("cpu", build.ROOT / "build" / "bundle", wheel, epoch)
        first = build.Release(
            version=wheel.name.split("-")[1], flavour="cpu", sequence=1, min_from=0, epoch=epoch, valid_days=365
        )
        made = {"first": CACHE / "first.bundle", "second": CACHE / "second.bundle"}
        for sequence, path in enumerate(made.values(), start=1):
            build.assemble(replace(first, sequence=sequence), contents, release_key, path)
    return made


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Path]) -> Iterator[Machine]:
    """A bare server that runs, with the variables of its inventory; the first tests install the appliance on it."""
    try:
        machine.require()
    except machine.Unavailable as reason:
        pytest.skip(str(reason))
    place = CACHE / "server"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    secret = place / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text(PASSPHRASE + "\n")
    with machine.machine(place) as made:
        made.variables |= {
            "bundle_file": str(bundles["first"]),
            "bundle_signers": str(CACHE / "release.signers"),
            "egress_admins": [machine.CONTROLLER, machine.CONTROLLER6],
            "store_database": "postgresql",
            "store_passphrase_file": str(secret),
            "backup_directory": "/var/backups/appliance",
        }
        yield made


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, float]]:
    """What the tests measure, written into the file that APPLIANCE_FIGURES names, for bench/deploy.py."""
    measured: dict[str, float] = {}
    yield measured
    if "APPLIANCE_FIGURES" in os.environ:
        Path(os.environ["APPLIANCE_FIGURES"]).write_text(json.dumps(measured))
    print(f"\nfigures: {json.dumps(measured)}", file=sys.stderr)
