"""The release bundle: the same bytes twice; nothing of it can be altered, left out, kept too long or turned back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.bundle import build, lock, sbom

NOW = 1_790_000_000
RELEASE = build.Release(version="0.1.0", flavour="control", sequence=5, min_from=3, epoch=NOW, valid_days=100)


def wheel(directory: Path, name: str, version: str) -> Path:
    """A wheel with metadata and one module."""
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
        archive.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA"), metadata)
        archive.writestr(zipfile.ZipInfo(f"{name}.py"), "x = 1\n")
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "release"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def contents(directory: Path) -> dict[str, build.Content]:
    directory.mkdir(parents=True, exist_ok=True)
    long_name = "b" * 90
    wheels = [wheel(directory, "a", "1.0"), wheel(directory, long_name, "2.0")]
    lines = [f"{w.name.split('-')[0]}=={w.name.split('-')[1]} --hash=sha256:{digest(w)}" for w in wheels]
    return {
        "requirements.txt": "".join(f"{line}\n" for line in lines).encode(),
        "sbom.cdx.json": sbom.sbom("0.1.0", {w: digest(w) for w in wheels}, NOW),
        "ansible/galaxy.yml": b"name: deploy\n",
        **{f"wheels/{w.name}": w for w in wheels},
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def make(key: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a bundle, with changes to the release or to its contents."""
    (tmp_path / "signers").write_text(build.signers(key))

    def make(name: str = "one", leave_out: str = "", **changed: Any) -> Path:
        inside = {
            path: file for path, file in contents(tmp_path / name).items() if not (leave_out and leave_out in path)
        }
        build.assemble(replace(RELEASE, **changed), inside, key, tmp_path / f"{name}.bundle")
        return tmp_path / f"{name}.bundle"

    return make


def verify(bundle: Path, *options: str, now: int = NOW + 1000) -> tuple[int, dict[str, Any]]:
    """Run the verifier as an admin does, but for the clock."""
    clock = f"import time; time.time = lambda: {now}"
    script = f"{clock}; import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    signers = [] if "--signers" in options else ["--signers", str(bundle.parent / "signers")]
    command = [sys.executable, "-I", "-c", script, str(build.VERIFIER), str(bundle), *signers, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}")


def test_two_builds_have_the_same_bytes(make: Callable[..., Path]) -> None:
    first, second = make("one"), make("two")
    assert first.read_bytes() == second.read_bytes()


def test_a_bundle_is_verified_and_unpacked(make: Callable[..., Path], tmp_path: Path) -> None:
    bundle, target = make(), tmp_path / "unpacked"
    assert verify(bundle, "--extract", str(target))[0] == 0
    manifest = json.loads((target / "manifest.json").read_text())
    for entry in manifest["files"]:
        assert digest(target / entry["path"]) == entry["sha256"]
    with tarfile.open(bundle) as archive:  # and it is a tar archive for everybody else
        assert {m.name for m in archive} - {"manifest.json", "manifest.json.sig"} == {
            e["path"] for e in manifest["files"]
        }


def test_any_altered_byte_is_refused_and_leaves_nothing(
    make: Callable[..., Path], tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    """Bytes of every part: headers, padding, signature, manifest, wheels, the end."""
    bundle = make()
    verifier, original = build.verifier(), bundle.read_bytes()
    positions = range(0, len(original), max(1, len(original) // stress_count(150, 100_000)))
    for at in [*positions, len(original) - 1]:
        altered = bytearray(original)
        altered[at] ^= 1 << (at % 8)
        bundle.write_bytes(altered)
        with pytest.raises(verifier.Refused) as refused:
            verifier.verify(str(bundle), str(tmp_path / "signers"), 4, str(tmp_path / "out"), now=NOW)
        assert refused.value.status in (8, 14), at
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("cut", [1, 512, 1024, 1025, 3000])
def test_a_bundle_that_was_cut_is_refused(make: Callable[..., Path], cut: int) -> None:
    bundle = make()
    bundle.write_bytes(bundle.read_bytes()[:-cut])
    assert verify(bundle)[0] == 14
    bundle.write_bytes(make("two").read_bytes() + b"\0")
    assert verify(bundle)[0] == 8


def test_another_key_another_purpose_and_no_key_are_refused(
    make: Callable[..., Path], key: Path, tmp_path: Path
) -> None:
    bundle = make()
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    (tmp_path / "others").write_text(build.signers(other))
    assert verify(bundle, "--signers", str(tmp_path / "others"))[0] == 8
    (tmp_path / "others").write_text(build.signers(key).replace("appliance-bundle@v1", "appliance-import@v1"))
    assert verify(bundle, "--signers", str(tmp_path / "others"))[0] == 8
    assert verify(bundle, "--signers", str(tmp_path / "nowhere"))[0] == 14


def test_a_missing_wheel_is_missing(make: Callable[..., Path]) -> None:
    status, said = verify(make(leave_out="wheels/a-"))
    assert (status, said["reason"]) == (14, "the wheel of a is missing")
    assert verify(make("two", leave_out="sbom"))[0] == 14


@pytest.mark.parametrize(
    ("installed", "changed", "now", "status"),
    [
        ("1", {"min_from": 0}, NOW, 0),
        ("0", {}, NOW, 0),  # nothing is installed
        ("2", {}, NOW, 15),  # an intermediate release is needed first
        ("5", {}, NOW, 0),
        ("6", {}, NOW, 15),  # older than what is installed
        ("4", {}, NOW + 101 * 86400, 15),  # expired
    ],
)
def test_age(
    make: Callable[..., Path], tmp_path: Path, installed: str, changed: dict[str, Any], now: int, status: int
) -> None:
    (tmp_path / "installed").write_text(installed)
    assert verify(make(**changed), "--installed", str(tmp_path / "installed"), now=now)[0] == status


def test_going_back_needs_a_token_for_this_release(make: Callable[..., Path], key: Path, tmp_path: Path) -> None:
    bundle, token = make(), tmp_path / "token"
    (tmp_path / "installed").write_text("6")
    options = ("--installed", str(tmp_path / "installed"), "--downgrade-token", str(token))
    for sequence, namespace, status in ((5, "appliance-downgrade@v1", 0), (4, "appliance-downgrade@v1", 15),
                                        (5, "appliance-bundle@v1", 8)):  # fmt: skip
        token.write_text(json.dumps({"to_sequence": sequence, "expires": "2030-01-01T00:00:00Z"}))
        token.with_name("token.sig").write_bytes(build.sign(token.read_bytes(), key, namespace))
        assert verify(bundle, *options)[0] == status


def test_a_full_disk_leaves_nothing(make: Callable[..., Path], tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("not run: a small file system needs root")
    bundle, small = make(), tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(small)], check=False).returncode:
        pytest.skip("not run: nothing can be mounted here")
    try:
        assert verify(bundle, "--extract", str(small / "out"))[0] == 9
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_list_of_parts_names_every_wheel(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path, "a_b", "1.0"), wheel(tmp_path, "c", "2")]
    listed = json.loads(sbom.sbom("0.1.0", {w: digest(w) for w in wheels}, NOW))
    assert [part["purl"] for part in listed["components"]] == ["pkg:pypi/a-b@1.0", "pkg:pypi/c@2"]
    assert listed["components"][0]["hashes"] == [{"alg": "SHA-256", "content": digest(wheels[0])}]
    assert listed["components"][0]["licenses"] == [{"license": {"name": "MIT"}}]


def test_the_locks_hold_what_constraints_say(tmp_path: Path) -> None:
    """Each flavour is pinned and hashed; a control node's has no torch, the CUDA flavour NVIDIA's libraries."""
    pinned = dict(line.lower().split("==") for line in (build.ROOT / "constraints.txt").read_text().split())
    locks = {flavour: (lock.LOCKS / f"{flavour}.txt").read_text().splitlines() for flavour in lock.WANTED}
    for lines in locks.values():
        for line in lines:
            name, version = line.partition(" ")[0].lower().split("==")
            assert len(line.rpartition("sha256:")[2]) == 64
            assert pinned.get(name, version) == version.partition("+")[0]
    assert not any(line.startswith(("torch==", "nvidia", "opacus")) for line in locks["control"])
    assert any(line.startswith("torch==2.13.0+cpu ") for line in locks["cpu"])
    assert any(line.startswith("nvidia-nccl-cu13==") for line in locks["cuda"])
