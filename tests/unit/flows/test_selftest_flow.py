"""When a recorded self-test still counts: same job, same software, same boot, and passed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import GateFailed, IntegrityError
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.flows.run import rates, selftest
from appliance.jobs.job import EngineOptions, IsolationReport, IsolationSpec, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.jobs.rundir import RunDir
from appliance.jobs.selftest import Check, GpuRate, SelftestJob, SelftestResult
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.values import to_json
from tests.builders import desk_at


def job(noise_multiplier: float = 1.0) -> bytes:
    """The bytes of a training job."""
    plan = PrivacyPlan(
        unit=UnitOfPrivacy(),
        declared_units=40,
        expected_batch_size=8,
        steps=3,
        spare_steps=2,
        max_grad_norm=0.5,
        clipping="fixed",
        noise_multiplier=noise_multiplier,
        epsilon=8.0,
        delta=1e-4,
        sampler_delta=0.0,
    )
    made = TrainJob(
        schema="appliance.job/1",
        run_id="run_1",
        plan=plan,
        lora=LoraSpec(r=4),
        train=TrainSpec(lr=1e-2, max_tokens=96),
        engine=EngineOptions(),
        isolation=IsolationSpec(),
        model_dir="model",
        model_sha256="0" * 64,
        dataset=SealedObject(dataset_id="d", path="p", blake3="1" * 64, wrapped_key="w", key_epoch=1),
        agent_socket="s",
    )
    return to_json(made)


class Worker:
    """Stands for the worker's process: counts its starts and answers as it is told."""

    def __init__(self) -> None:
        self.starts, self.passed = 0, True
        self.rate: GpuRate | None = None

    def __call__(self, run_dir: RunDir, result_type: Any, **_: Any) -> SelftestResult:
        self.starts += 1
        asked = SelftestJob.model_validate_json(run_dir.job.read_bytes())
        made = SelftestResult(
            schema="appliance.result/1",
            run_id=asked.run_id,
            passed=self.passed,
            checks=(Check(name="replay.dense", passed=self.passed, value="0.9", bound="1.0", count=1),),
            isolation=IsolationReport(network="off", files="restricted", core_dumps="off"),
            libraries={},
            rate=self.rate,
        )
        run_dir.result.write_bytes(to_json(made))
        return made


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker()
    monkeypatch.setattr(launch, "run_worker", made)
    return made


@pytest.fixture
def desk(ledger: Ledger, actor: Actor, tmp_path: Path) -> Desk:
    (tmp_path / "runs" / "run_1").mkdir(parents=True)
    return desk_at(ledger, actor, tmp_path)


@pytest.fixture
def row(desk: Desk) -> Any:
    data = job()
    (desk.home.runs / "run_1" / "job.json").write_bytes(data)
    return SimpleNamespace(id="run_1", spec_sha256=hashlib.sha256(data).hexdigest(), policy_sha256="ab" * 32)


def test_a_passed_test_counts_until_software_job_or_boot_change(
    desk: Desk, ledger: Ledger, row: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = selftest.ensure(desk, row)
    assert selftest.ensure(desk, row) == first
    assert worker.starts == 1
    facts = ledger.entry(first.entry).leaf["facts"]
    kept = (desk.home.runs / "run_1" / "selftest" / "result.json").read_bytes()
    assert facts["result_sha256"] == hashlib.sha256(kept).hexdigest()

    with monkeypatch.context() as other:
        other.setattr(selftest, "boot_id", lambda: "another")
        selftest.ensure(desk, row)
    assert worker.starts == 2
    with monkeypatch.context() as other:
        other.setattr(selftest, "software", lambda: {"version": "1", "sha256": "0" * 64})
        selftest.ensure(desk, row)
    assert worker.starts == 3

    changed = job(noise_multiplier=1.5)
    (desk.home.runs / "run_1" / "job.json").write_bytes(changed)
    with pytest.raises(IntegrityError, match="not the one that was reserved"):
        selftest.ensure(desk, row)
    row.spec_sha256 = hashlib.sha256(changed).hexdigest()
    selftest.ensure(desk, row)
    assert worker.starts == 4


def test_the_rate_of_the_gpu_is_kept_for_forecasts(desk: Desk, row: Any, worker: Worker) -> None:
    worker.rate = GpuRate(name="NVIDIA L4", dtype="bfloat16", gigaflops=90000.0)
    selftest.ensure(desk, row)
    assert rates.gpu(desk.home, "NVIDIA L4", "bfloat16") == 90000.0


def test_a_failed_test_is_recorded_refuses_and_does_not_count(
    desk: Desk, ledger: Ledger, row: Any, worker: Worker
) -> None:
    worker.passed = False
    for _ in range(2):
        with pytest.raises(GateFailed, match=r"replay\.dense"):
            selftest.ensure(desk, row)
    assert worker.starts == 2
    assert [e.leaf["facts"]["passed"] for e in ledger.entries(type="audit.selftest")] == [False, False]


def test_a_result_that_contradicts_its_checks_has_not_passed(
    desk: Desk, ledger: Ledger, row: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(run_dir: Path, result_type: Any, **_: Any) -> SelftestResult:
        worker.passed = False
        return worker(run_dir, result_type).model_copy(update={"passed": True})

    monkeypatch.setattr(launch, "run_worker", lying)
    with pytest.raises(GateFailed):
        selftest.ensure(desk, row)
    monkeypatch.setattr(launch, "run_worker", lambda *a: worker(*a).model_copy(update={"passed": True, "checks": ()}))
    with pytest.raises(GateFailed, match="no check"):
        selftest.ensure(desk, row)
