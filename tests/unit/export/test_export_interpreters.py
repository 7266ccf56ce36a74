"""The stand-alone verifier under every other Python that this machine has, from 3.9 on: an auditor's is seldom ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.export import verify

VECTORS = Path(__file__).parents[2] / "vectors"
OTHERS = [f"3.{minor}" for minor in (9, 10, 11, 12, 13, 14) if minor != sys.version_info.minor]

# Bare Python: the golden bundle with and without a pin and with each change, then every vector of the signatures.
DRIVER = """
import importlib.util, json, shutil, sys
vectors, work = sys.argv[1:]
spec = importlib.util.spec_from_file_location("verify", vectors + "/../../appliance/export/verify.py")
verify = importlib.util.module_from_spec(spec)
sys.modules["verify"] = verify
spec.loader.exec_module(verify)
expected = json.load(open(vectors + "/bundle/expected.json", encoding="utf-8"))
pin = [expected["fingerprint"]]
assert verify.verify(vectors + "/bundle/bundle", pin).code == 0
assert verify.verify(vectors + "/bundle/bundle", []).code == 14
for number, change in enumerate(expected["changes"].values()):
    copy = shutil.copytree(vectors + "/bundle/bundle", work + "/%d" % number)
    with open(copy + "/" + change["path"], "rb+") as file:
        data = file.read().replace(change["old"].encode(), change["new"].encode())
        file.seek(0); file.truncate(); file.write(data)
    assert verify.verify(copy, pin).code == change["exit"], change
signatures = json.load(open(vectors + "/signatures.json", encoding="utf-8"))
for case in signatures["ed25519"]:
    public, message, signature = (bytes.fromhex(case[name]) for name in ("public", "message", "signature"))
    assert verify.ed25519_accepts(public, message, signature)
    assert not verify.ed25519_accepts(public, message + b"x", signature)
for case in signatures["mldsa44"][:1]:
    names = ("public", "message", "signature", "context")
    assert verify.mldsa44_accepts(*(bytes.fromhex(case[name]) for name in names))
print(sys.version_info[:2])
"""


def interpreter(version: str) -> str | None:
    """A Python of this version that starts: from the path, or one of those that pyenv keeps."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for candidate in (shutil.which(f"python{version}"), *map(str, kept)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.mark.parametrize("version", OTHERS)
def test_the_verifier_under(version: str, tmp_path: Path) -> None:
    found = interpreter(version)
    if found is None:
        pytest.skip(f"not run: there is no Python {version} here")
    command = [found, "-I", "-S", "-W", "error", "-c", DRIVER, str(VECTORS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"({version.replace('.', ', ')})"


def test_the_command_under_the_oldest_that_it_is_made_for() -> None:
    """As an auditor runs it, with the golden bundle's own copy replaced by today's file."""
    found = interpreter("3.9")
    if found is None:
        pytest.skip("not run: there is no Python 3.9 here")
    words = [str(VECTORS / "bundle" / "bundle"), "--trusted-key", str(VECTORS / "bundle" / "keys.txt")]
    done = subprocess.run([found, "-I", "-S", verify.__file__, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verdict   intact" in done.stdout
