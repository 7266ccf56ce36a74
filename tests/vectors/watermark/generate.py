"""Wrote the vectors of docs/spec/watermark.md. They are never changed once released; a new format gets new ones."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from appliance.watermark import escrow
from appliance.watermark.adapters import AdapterSuspect, Factors
from appliance.watermark.certificate import algorithm_sha256, certificate
from appliance.watermark.detection import project, score
from appliance.watermark.embedding import mark
from appliance.watermark.keys import module_key, signs
from appliance.watermark.reference import decompose

HERE = Path(__file__).parent
MODEL = "ab" * 32
ROLE = "owner/run_0123456789ab"
MASTER = bytes(range(32))
CASES = [
    (MASTER, MODEL, ROLE, "model.layers.0.self_attn.q_proj", 576, 576, 8),
    (bytes(32), "00" * 32, "owner/run_000000000000", "m", 3, 5, 1),
    (bytes([255] * 32), "cd" * 32, "owner/run_ffffffffffff", "model.layers.29.mlp.down_proj", 7, 18, 3),
]


def write_signs() -> None:
    found = []
    for master, model, role, module, outputs, inputs, rank in CASES:
        key = module_key(master, model, role, module)
        both = torch.cat(signs(key, outputs, inputs, rank))
        packed = np.packbits((both.flatten() < 0).numpy(), bitorder="little").tobytes()
        found.append(
            {
                "master": master.hex(),
                "model_sha256": model,
                "role": role,
                "module": module,
                "outputs": outputs,
                "inputs": inputs,
                "rank": rank,
                "module_key": key.hex(),
                "first_bytes": packed[:16].hex(),
                "sha256": hashlib.sha256(packed).hexdigest(),
            }
        )
    _write("signs.json", {"schema": "appliance.watermark-vectors/1", "signs": found})


def write_detection() -> None:
    generator = torch.Generator().manual_seed(11)
    shapes = {"model.layers.0.mlp.up_proj": (64, 48), "model.layers.0.self_attn.q_proj": (48, 48), "still": (16, 48)}
    key_of = partial(module_key, MASTER, MODEL, ROLE)
    references, a, b = [], {}, {}
    for name, (outputs, inputs) in shapes.items():
        left = torch.randn(outputs, 4, generator=generator) * (0.0 if name == "still" else 1.0)
        right = torch.randn(4, inputs, generator=generator)
        p = torch.linalg.qr(torch.randn(inputs, 4, generator=generator)).Q
        references.append(decompose(name, right, left, 2.0, p))
        a[name], b[name] = mark(references[-1], key_of(name), 0.1, 2.0)
    data = escrow.write(references, MODEL, ROLE)
    (HERE / "escrow.safetensors").write_bytes(data)
    state = {f"base_model.model.{n}.lora_A.weight": a[n] for n in shapes}
    state |= {f"base_model.model.{n}.lora_B.weight": b[n] for n in shapes}
    suspect = HERE / "suspect"
    suspect.mkdir(exist_ok=True)
    save_file(state, suspect / "adapter_model.safetensors", metadata={"format": "pt"})
    (suspect / "adapter_config.json").write_text('{"lora_alpha": 8.0, "peft_type": "LORA", "r": 4}\n')
    factors = Factors(tuple(sorted(a)), a, b, 2.0, {})
    residual = project(AdapterSuspect(factors), escrow.read(data, escrow.digest(data)))
    found = score(residual, key_of)
    other = score(residual, partial(module_key, bytes(32), MODEL, ROLE))
    digests = {
        "run_id": "run_0123456789ab",
        "key_id": "wmk_0123456789ab",
        "role": ROLE,
        "commitment": hashlib.sha256(b"appliance/watermark-key/v1\0" + MASTER).hexdigest(),
        "suspect_sha256": "11" * 32,
        "model_sha256": MODEL,
        "escrow_sha256": escrow.digest(data),
        "algorithm_sha256": algorithm_sha256(),
    }
    (HERE / "certificate.json").write_bytes(certificate(digests, "adapter", found, 1, {"none": found, "nf4": 12.5}))
    expected = {"escrow_sha256": escrow.digest(data), "score": f"{found:.6f}", "score_of_zero_key": f"{other:.6f}"}
    _write("detection.json", {"schema": "appliance.watermark-vectors/1", "master": MASTER.hex(), **expected})


def _write(name: str, document: dict[str, object]) -> None:
    (HERE / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_signs()
    write_detection()
