"""Writes the vectors of `docs/spec/bundle.md`. Run once for a format version; released vectors are never changed.

`python -m tests.vectors.bundle.generate DIRECTORY` writes `bundle/` (a bundle with a tiny random adapter), `keys.txt`
(the keys to pin) and `expected.json` (verdicts: of the bundle as it is, and after each of a list of changes).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from tests.unit.export import sealed


def main(directory: Path) -> None:
    for name in ("bundle", "keys.txt", "expected.json"):
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        signing = home / "home" / "signing"
        signing.mkdir(parents=True)
        (signing / "ed25519.seed").write_bytes(sha256(b"bundle vector, Ed25519").digest())
        (signing / "mldsa44.seed").write_bytes(sha256(b"bundle vector, ML-DSA-44").digest())
        sealed.make_bundle(home)
        shutil.copytree(home / "bundle", directory / "bundle")
        shutil.copy(home / "keys.txt", directory / "keys.txt")
    (directory / "expected.json").write_text(json.dumps(expected(directory), indent=1) + "\n")


def expected(directory: Path) -> dict[str, object]:
    def changed(path: str, old: str, new: str, status: int = 8) -> dict[str, object]:
        assert old in (directory / "bundle" / path).read_text()
        return {"path": path, "old": old, "new": new, "exit": status}

    event = max((directory / "bundle" / "ledger").glob("*.leaf")).name
    return {
        "fingerprint": sha256((directory / "keys.txt").read_bytes()).hexdigest(),
        "pinned": 0,
        "unpinned": 14,
        "changes": {
            "a document": changed("README.md", "card", "cart"),
            "the manifest": changed("manifest.json", '"kind":"bundle"', '"kind":"report"'),
            "a figure": changed("report.json", '"value":"7.9951"', '"value":"7.9950"'),
            "the event": changed(f"ledger/{event}", "bundle_bundle", "bundle_another"),
            "a proof": changed(f"ledger/{event.replace('leaf', 'proof')}", "index ", "index 0"),
            "the tree head": changed("ledger/head.txt", "\n12\n", "\n13\n"),
            "an extension line": changed("ledger/head.txt", "\n12\n", "\n12\nmore\n"),
            "the name of the log": changed("ledger/keys.txt", "hospital.example", "hostel.example"),
            "an earlier tree head": changed("ledger/consistency/11.txt", "old 11", "old 10"),
            "line ends": changed("ledger/head.txt", "\n", "\r\n"),
        },
        "removed": [*["report.html", "ledger/head.txt", "ledger/00000005.leaf", "ledger/consistency/11.txt"]],
        "added": ["note.txt", "ledger/note.txt", "adapter/note.txt"],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
