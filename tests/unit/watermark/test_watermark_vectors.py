"""The released vectors, read by the room and by a second detector that only knows the specification's text."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from safetensors.numpy import load_file

from appliance.watermark import escrow
from appliance.watermark.adapters import AdapterSuspect, read_adapter
from appliance.watermark.certificate import algorithm_sha256
from appliance.watermark.detection import project, score
from appliance.watermark.keys import module_key

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors" / "watermark"
EXPECTED = json.loads((VECTORS / "detection.json").read_text())
CERTIFICATE = json.loads((VECTORS / "certificate.json").read_text())
MASTER = bytes.fromhex(EXPECTED["master"])


def by_the_text(master: bytes) -> float:
    """The statistic as algorithm.txt has it, with dense matrices and numpy alone."""
    stored, suspect = (
        load_file(VECTORS / "escrow.safetensors"),
        load_file(VECTORS / "suspect/adapter_model.safetensors"),
    )
    total = norm = 0.0
    for name in sorted({key.rsplit("/", 1)[0] for key in stored}):
        u, s, v, p = (stored[f"{name}/{part}"].astype(np.float64) for part in "usvp")
        if not s.any():
            continue
        a, b = (suspect[f"base_model.model.{name}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        dv = 2.0 * b @ a
        keep_left = np.eye(len(u)) - u @ np.linalg.pinv(u)
        both = np.concatenate([v, p], axis=1)
        keep_right = np.eye(len(v)) - both @ np.linalg.pinv(both)
        y, x = keep_left @ dv @ v * s, keep_right @ dv.T @ u * s
        info = rfc8785.dumps(["appliance/watermark/v1/signs", CERTIFICATE["model_sha256"], CERTIFICATE["role"], name])
        key = HKDF(hashes.SHA256(), 32, None, info).derive(master)
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(y.size + x.size))
        bits = [stream[n // 8] >> (n % 8) & 1 for n in range(y.size + x.size)]
        secret = 1.0 - 2.0 * np.array(bits, dtype=np.float64)
        total += float(secret[: y.size] @ y.ravel() + secret[y.size :] @ x.ravel())
        norm += float((y**2).sum() + (x**2).sum())
    return total / math.sqrt(norm)


@pytest.mark.parametrize(("master", "expected"), [(MASTER, "score"), (bytes(32), "score_of_zero_key")])
def test_both_detectors_find_the_score_of_the_vector(master: bytes, expected: str) -> None:
    references = escrow.read((VECTORS / "escrow.safetensors").read_bytes(), EXPECTED["escrow_sha256"])
    residual = project(AdapterSuspect(read_adapter(VECTORS / "suspect")), references)
    key_of = partial(module_key, master, CERTIFICATE["model_sha256"], CERTIFICATE["role"])
    assert score(residual, key_of) == pytest.approx(float(EXPECTED[expected]), abs=2e-6)
    assert by_the_text(master) == pytest.approx(float(EXPECTED[expected]), abs=2e-4)


def test_the_certificate_names_the_text_that_the_specification_holds() -> None:
    text = (ROOT / "appliance" / "watermark" / "algorithm.txt").read_text()
    page = (ROOT / "docs" / "spec" / "watermark.md").read_text()
    assert f"```text\n{text}```" in page
    assert hashlib.sha256(text.encode()).hexdigest() == algorithm_sha256() == CERTIFICATE["algorithm_sha256"]
    assert algorithm_sha256() in page


def test_the_certificate_is_canonical_and_says_what_the_vector_says() -> None:
    data = (VECTORS / "certificate.json").read_bytes()
    document: dict[str, Any] = json.loads(data)
    assert rfc8785.dumps(document) + b"\n" == data
    assert document["statistic"] == f"{float(EXPECTED['score']):.3f}"
    assert document["escrow_sha256"] == EXPECTED["escrow_sha256"]
    assert document["commitment"] == hashlib.sha256(b"appliance/watermark-key/v1\0" + MASTER).hexdigest()
    page = (ROOT / "docs" / "spec" / "watermark.md").read_text()
    for name, value in document.items():
        assert f'"{name}"' in page, name
        assert isinstance(value, (str, int, bool, dict))
