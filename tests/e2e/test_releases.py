"""What earlier releases wrote: their ledgers, bundles and reports verify with this release, and go on being of use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.events.catalog import event
from appliance.export import verify as verifier
from appliance.flows import verify as verify_flow
from appliance.flows.home import Home
from appliance.flows.release.told import citable
from appliance.report.documents import documents
from appliance.report.evidence import SignedHead

RELEASES = sorted(path for path in (Path(__file__).parents[1] / "vectors" / "releases").iterdir() if path.is_dir())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what one release wrote."""
    copy = Path(shutil.copytree(request.param, tmp_path / "release"))
    for directory in ("runs", "objects", "models", "agent"):
        (copy / "home" / directory).mkdir()
    return copy


def fingerprint(release: Path) -> str:
    return sha256((release / "keys.txt").read_bytes()).hexdigest()


def test_its_ledger_verifies(release: Path) -> None:
    found = verify_flow.verify(Home.open(release / "home"), lambda done, total: None)
    assert found.verification.problems == ()
    assert found.verification.entries == found.verification.signed_size > 30
    assert found.fingerprint.replace(" ", "") == fingerprint(release)


def test_its_entries_are_events_of_this_release(release: Path) -> None:
    with Home.open(release / "home").reader() as ledger:
        for entry in ledger.entries():
            leaf = entry.leaf
            read = event(leaf["type"], leaf["facts"])
            assert read.facts() == leaf["facts"]
            assert read.subject == leaf["subject"]


@pytest.mark.parametrize("kind", ["bundle", "report"])
def test_its_sealed_directories_verify(release: Path, kind: str) -> None:
    seen = verifier.verify(str(release / kind), [fingerprint(release)])
    assert seen.code == 0, seen
    own = [sys.executable, "-I", "verify.py", ".", "--trusted-key", fingerprint(release)]
    assert subprocess.run(own, cwd=release / kind, capture_output=True, check=False).returncode == 0

    leaf = sorted((release / kind / "ledger").glob("*.leaf"))[3]
    leaf.write_bytes(leaf.read_bytes().replace(b'"index":', b'"Index":'))
    assert verifier.verify(str(release / kind), [fingerprint(release)]).code == 8


def test_its_runs_can_be_reported_from_its_ledger_alone(release: Path) -> None:
    home = Home.open(release / "home")
    with home.reader() as ledger:
        runs = [entry.leaf["facts"]["run_id"] for entry in ledger.entries("run.reserved")]
        for run in runs:
            head = ledger.head()
            assert head is not None
            signed = SignedHead(origin=home.config.origin, size=head.size, root=head.root.hex(), note=head.note)
            written = documents(run, citable(ledger), signed)
            assert run.encode() in written["report.json"]
    assert len(runs) == 2
