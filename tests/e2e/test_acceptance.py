"""`doctor --record`: what was found on a machine stands in the ledger, and only what was found with this software."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.ledger.leaf import software
from tests.e2e.conftest import Appliance
from tests.e2e.test_main_job import facts

CHECKS = [
    {"name": "exact_bfloat16", "state": "passed", "detail": "with 4 rows at a time"},
    {"name": "user_train_start", "state": "failed", "detail": "exit status 7: the sandbox is not in force"},
]


def document(path: Path, **changes: Any) -> Path:
    made = {
        "schema": "appliance.accept/1", "accepted": False, "device": "cuda", "hardware": "NVIDIA A100",
        "date": "2026-11-26T10:00:00Z", "software": software(), "libraries": {"torch": "2.13.0"}, "checks": CHECKS,
        "figures": [{"name": "step_time_ratio", "value": 1.01}],
    }  # fmt: skip
    path.write_text(json.dumps(made | changes))
    return path


@pytest.mark.parametrize("accepted", [True, False])
def test_what_was_found_is_signed_into_the_ledger(sealed: Appliance, tmp_path: Path, accepted: bool) -> None:
    path = document(tmp_path / "accept.json", accepted=accepted, checks=CHECKS[:1] if accepted else CHECKS)
    done = sealed.json("doctor", "--record", str(path))
    (entry,) = facts(sealed, "machine.examined")
    assert entry["accepted"] is done["accepted"] is accepted
    assert entry["document_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [check["state"] for check in entry["checks"]] == ["passed", "failed"][: 1 if accepted else 2]
    assert sealed.json("ledger", "verify")["entries"] == done["entry"] + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"accepted": True},  # though a check failed
        {"checks": []},
        {"software": software() | {"sha256": "0" * 64}},
        {"schema": "appliance.accept/2"},
        {"comment": "all is well"},
    ],
)
def test_what_is_no_acceptance_of_this_software_is_refused(
    sealed: Appliance, tmp_path: Path, changes: dict[str, Any]
) -> None:
    refused = sealed("doctor", "--record", str(document(tmp_path / "accept.json", **changes)), expect=6)
    assert "acceptance" in refused.err
    assert facts(sealed, "machine.examined") == []


def test_a_record_needs_a_file_and_cannot_be_rehearsed(sealed: Appliance, tmp_path: Path) -> None:
    sealed("doctor", "--record", str(tmp_path / "nothing.json"), expect=11)
    sealed("--dry-run", "doctor", "--record", str(document(tmp_path / "accept.json")), expect=2)


def attestation(path: Path, **changes: Any) -> Path:
    """A document of the deployment's attest.py."""
    checks = [
        {"name": "server: tcp4", "state": "passed", "detail": "blocked"},
        {"name": "swap is off", "state": "passed", "detail": ""},
    ]
    made = {
        "schema": "appliance.attest/1", "attested": True, "host": "server1", "machine": "ab" * 16, "release": "0.1.0-1",
        "date": "2026-11-26T10:00:00Z", "baseline_sha256": "cd" * 32, "checks": checks,
    }  # fmt: skip
    path.write_text(json.dumps(made | changes))
    return path


@pytest.mark.parametrize("well", [True, False])
def test_an_attestation_is_signed_into_the_ledger(sealed: Appliance, tmp_path: Path, well: bool) -> None:
    open_ = [{"name": "run: tcp4", "state": "failed", "detail": "open"}]
    path = attestation(tmp_path / "a.json", **({} if well else {"attested": False, "checks": open_}))
    done = sealed.json("doctor", "--record", str(path))
    (entry,) = facts(sealed, "machine.attested")
    assert entry["attested"] is done["attested"] is well
    assert (entry["passed"], entry["failed"]) == ((2, []) if well else (0, ["run: tcp4"]))
    assert entry["document_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_attestation_that_contradicts_itself_is_refused(sealed: Appliance, tmp_path: Path) -> None:
    sealed("doctor", "--record", str(attestation(tmp_path / "a.json", attested=False)), expect=6)
    assert facts(sealed, "machine.attested") == []
