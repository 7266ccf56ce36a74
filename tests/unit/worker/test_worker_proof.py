"""A proof of row counts is kept for jobs of the same shapes on the same machine, and for no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.jobs.rundir import RunDir
from appliance.jobs.selftest import ShapeProof
from appliance.train import coupling, machine
from appliance.train.mechanism import Assembled, assemble
from appliance.train.proofs import prove
from appliance.values import to_json
from appliance.worker.proof import read_counts, state_proof
from tests.conftest import MEDIA
from tests.unit.train.rig import job, load, plan

Assemble = Callable[[], Assembled]

OTHER_ISA = """
import sys, json
from tests.unit.worker.test_worker_proof import stated
print(stated(sys.argv[1]).model_dump_json())
"""


def assembled(directory: Path | str) -> Assembled:
    from transformers import AutoTokenizer

    made = job(plan())
    return assemble(
        made.plan, made.lora, made.train, made.engine, load(directory), AutoTokenizer.from_pretrained(directory)
    )


def stated(directory: Path | str) -> ShapeProof:
    made = assembled(directory)
    return state_proof(prove(made.engine, made.encoder.buckets), job(plan()), made.adapter.model)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def proof(tiny_model_dir: Path) -> ShapeProof:
    return stated(tiny_model_dir)


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often everything was proved anew."""
    times: list[int] = []
    prove_all = coupling._prove
    monkeypatch.setattr(coupling, "_prove", lambda *a, **k: times.append(1) or prove_all(*a, **k))
    return times


def test_a_proof_travels_and_is_taken(
    proof: ShapeProof, tiny_model_dir: Path, tmp_path: Path, proved: list[int]
) -> None:
    RunDir(tmp_path).proof.write_bytes(to_json(proof))
    made = assembled(tiny_model_dir)
    known = read_counts(RunDir(tmp_path).read_proof(), job(plan()), made.adapter.model)
    assert known is not None
    assert prove(made.engine, made.encoder.buckets, known) is known
    assert made.engine.counts is known
    assert not proved
    anew = prove(made.engine, made.encoder.buckets)
    assert (anew.proved, anew.bits, anew.digest()) == (known.proved, known.bits, known.digest())


@pytest.mark.parametrize(
    "changes", [{"max_grad_norm": 0.25}, {"clipping": "normalised"}], ids=lambda changes: next(iter(changes))
)
def test_a_job_of_other_shapes_or_bits_takes_it_not(
    proof: ShapeProof, tiny_model_dir: Path, changes: dict[str, Any]
) -> None:
    model, same = load(tiny_model_dir), job(plan())
    assert read_counts(proof, same, model)
    others = [
        job(plan(**changes)),
        same.model_copy(update={"model_sha256": "2" * 64}),
        same.model_copy(update={"lora": same.lora.model_copy(update={"r": 2})}),
        same.model_copy(update={"train": same.train.model_copy(update={"max_tokens": 128})}),
        same.model_copy(update={"train": same.train.model_copy(update={"init_seed": 8})}),
        same.model_copy(update={"engine": same.engine.model_copy(update={"physical_tokens": 512})}),
    ]
    assert [read_counts(proof, other, model) for other in others] == [None] * len(others)
    free = [  # what neither shapes nor bits follow
        job(plan(steps=5, noise_multiplier=2.0, declared_units=80)),
        same.model_copy(update={"run_id": "run-2", "train": same.train.model_copy(update={"lr": 1e-3})}),
    ]
    assert all(read_counts(proof, other, model) for other in free)


def test_another_machine_takes_it_not(proof: ShapeProof, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = load(tiny_model_dir), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert read_counts(proof, job(plan()), model) is None
    finally:
        torch.set_num_threads(threads)
    assert read_counts(proof, job(plan()), model)
    with monkeypatch.context() as changed:
        changed.setattr(machine, "version", lambda name: "0.0")
        assert read_counts(proof, job(plan()), model) is None
    assert read_counts(proof, job(plan()), model)
    with monkeypatch.context() as changed:
        changed.setattr(Path, "read_bytes", lambda path: b"another engine")
        assert read_counts(proof, job(plan()), model) is None


@pytest.mark.parametrize("damage", ["bits", "counts", "lengths"])
def test_a_proof_that_does_not_hold_here_is_made_anew(
    proof: ShapeProof, tiny_model_dir: Path, proved: list[int], damage: str
) -> None:
    rows = list(proof.rows)
    first = rows[0]
    assert len(first.counts) > 1
    rows[0] = first.model_copy(update={"bits": "0" * 64} if damage == "bits" else {"counts": first.counts[1:]})
    changed = proof.model_copy(update={"rows": tuple(rows[1:] if damage == "lengths" else rows)})
    made = assembled(tiny_model_dir)
    known = read_counts(changed, job(plan()), made.adapter.model)
    anew = prove(made.engine, made.encoder.buckets, known)
    assert proved
    assert anew.bits[first.length] == first.bits
    assert made.engine.counts is anew


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"shapes": 1'])
def test_a_missing_or_damaged_file_is_no_proof(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        RunDir(tmp_path).proof.write_bytes(content)
    assert RunDir(tmp_path).read_proof() is None


def test_processors_without_the_same_instructions_have_other_bits_and_no_proof_in_common(
    proof: ShapeProof, tiny_model_dir: Path
) -> None:
    """A real difference: the same machine as one that has no vector instructions beyond the least."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("not run: this processor has no vector instructions to leave out")
    less = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_ISA, str(tiny_model_dir)],
        cwd=MEDIA.parent, env=os.environ | less, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    other = json.loads(done.stdout)
    assert other["shapes"] == proof.shapes
    assert other["machine"] != proof.machine
    assert [row["bits"] for row in other["rows"]] != [row.bits for row in proof.rows]
