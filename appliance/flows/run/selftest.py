"""The engine self-test around a run: before it is marked started, and so before a key can be released.

A passed test holds for one job (by its digest), for the software that made it (by its digest) and until the machine
is booted again. It is found in the ledger under a signed tree head, not in a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import GateFailed
from appliance.events.run import CheckFacts, ProofFacts, SelfTested
from appliance.files import write_atomic
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.model.verify import check_files
from appliance.flows.passing import passing_directory
from appliance.flows.run import rates
from appliance.flows.run.plan import Resolved, resolve
from appliance.jobs.job import EngineOptions
from appliance.jobs.rundir import RunDir
from appliance.jobs.selftest import Check, SelftestJob, SelftestResult, ShapeProof, shapes_digest
from appliance.jobs.train import TrainJob
from appliance.ledger import proof
from appliance.ledger.leaf import boot_id, software
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import RunRow
from appliance.policy.run_file import RunFile
from appliance.values import to_json

_LOOKED_AT = 20  # newest self-tests among which row counts are looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A recorded self-test: the entry that states it, and its checks."""

    run_id: str
    entry: int
    passed: bool
    checks: tuple[Check, ...]


def ensure(desk: Desk, run: RunRow) -> Tested:
    """Test the engine for `run` unless the ledger holds a passed test of it that still counts.

    Raises:
      IntegrityError: the job is not the one that was reserved.
      GateFailed: a check failed. The failure is in the ledger; the run has to be settled.
      ApplianceError: the worker's refusal.
    """
    directory = desk.home.run(run.id)
    job = directory.reserved_job(TrainJob, run.spec_sha256)
    done = _find_counting(desk.ledger, run)
    if done is not None:
        _pass_on(desk, done, directory)
        return done
    shared = {name: getattr(job, name) for name in SelftestJob.model_fields if name not in ("schema_", "kind", "proof")}
    shared["proof"] = _find_proof(desk.ledger, job)
    tested = _test(desk, SelftestJob(**shared), directory.selftest, run.spec_sha256, run.policy_sha256)
    if not tested.passed:
        raise _make_refusal(tested)
    _pass_on(desk, tested, directory)
    return tested


def on_demand(home: Home, run: RunFile, engine: EngineOptions, operator: Operator) -> Tested:
    """Test what `train start` would test for a run file, under an id of its own; the outcome is recorded.

    Raises:
      PolicyDenied, ArtefactMissing: as `train plan`.
      GateFailed: a check failed.
    """
    with passing_directory(home, "selftest") as directory, Desk.open(home, operator) as desk:
        resolved = resolve(desk.ledger, run)
        check_files(home, resolved.model)
        job = _job(home, directory.name, resolved, engine)
        spec = hashlib.sha256(to_json(job)).hexdigest()
        tested = _test(desk, job, directory, spec, resolved.policy.digest)
    if not tested.passed:
        raise _make_refusal(tested)
    return tested


def latest(home: Home, run_id: str) -> Tested | None:
    """Find the newest recorded self-test of a run."""
    with home.reader() as ledger:
        return _latest(ledger, run_id)


def summary(tested: Tested) -> str:
    """Sum a self-test up in one line, for people."""
    share = next((check.value for check in tested.checks if check.name == "component.epsilon"), None)
    measured = f", measured noise, clip and sampling at {float(share):.1%} of the accounted epsilon" if share else ""
    outcome = "passed" if tested.passed else "failed"
    return f"engine self-test {outcome}: {len(tested.checks)} checks{measured} (entry {tested.entry})"


def _test(desk: Desk, job: SelftestJob, directory: RunDir, spec_sha256: str, policy_sha256: str) -> Tested:
    directory.path.mkdir(mode=0o700, exist_ok=True)
    directory.write_job(job)
    result = launch.run_worker(directory, SelftestResult)
    rates.keep(desk.home, result.rate)
    event = SelfTested(
        run_id=job.run_id,
        spec_sha256=spec_sha256,
        passed=result.passed and bool(result.checks) and all(check.passed for check in result.checks),
        checks=[CheckFacts(**check.model_dump()) for check in result.checks],
        result_sha256=hashlib.sha256(directory.result.read_bytes()).hexdigest(),
        isolation=result.isolation.model_dump(),
        libraries=dict(result.libraries),
    )
    if result.proof:
        event = event.model_copy(update={"proof": ProofFacts.model_validate_json(to_json(result.proof))})
    return _read_tested(desk.record(event, policy_sha256), event.facts())


def _find_counting(ledger: LedgerReader, run: RunRow) -> Tested | None:
    """Find the newest test of the run, if it passed, is of this very job, and software and boot are the same."""
    for entry in ledger.entries(SelfTested, subject=run.id, newest_first=True, limit=1):
        leaf = proof.verify(ledger.prove(entry.index), ledger.leaf(entry.index), ledger.verifier_keys).leaf
        same = leaf["software"] == software() and leaf["boot_id"] == boot_id() != "unknown"
        if same and leaf["facts"]["passed"] is True and leaf["facts"]["spec_sha256"] == run.spec_sha256:
            return _read_tested(entry.index, leaf["facts"])
    return None


def _find_proof(ledger: LedgerReader, job: TrainJob) -> ShapeProof | None:
    """Find the newest row counts that this software proved for jobs of these shapes, whichever run it was for.

    Whether they hold for the machine at hand is for the worker to say.
    """
    shapes = shapes_digest(job)
    for entry in ledger.entries(SelfTested, newest_first=True, limit=_LOOKED_AT):
        leaf = proof.verify(ledger.prove(entry.index), ledger.leaf(entry.index), ledger.verifier_keys).leaf
        stated = leaf["facts"].get("proof")
        if stated and leaf["facts"]["passed"] is True and stated["shapes"] == shapes and leaf["software"] == software():
            return ShapeProof.model_validate_json(orjson.dumps(stated))
    return None


def _pass_on(desk: Desk, tested: Tested, directory: RunDir) -> None:
    """Leave the row counts that a recorded test states to the worker that is about to start."""
    stated = desk.ledger.entry(tested.entry).leaf["facts"].get("proof")
    if stated is None:
        directory.proof.unlink(missing_ok=True)
    else:
        write_atomic(directory.proof, to_json(ShapeProof.model_validate_json(orjson.dumps(stated))))


def _latest(ledger: LedgerReader, run_id: str) -> Tested | None:
    for entry in ledger.entries(SelfTested, subject=run_id, newest_first=True, limit=1):
        return _read_tested(entry.index, entry.leaf["facts"])
    return None


def _read_tested(entry: int, facts: dict[str, Any]) -> Tested:
    checks = tuple(Check.model_validate(check) for check in facts["checks"])
    return Tested(run_id=facts["run_id"], entry=entry, passed=facts["passed"], checks=checks)


def _make_refusal(tested: Tested) -> GateFailed:
    names = ", ".join(check.name for check in tested.checks if not check.passed)
    return GateFailed(
        f"the engine self-test failed ({names or 'no check was made'})",
        hint=f"nothing was trained; `appliance ledger show {tested.entry}` shows every check",
        where=tested.run_id,
    )


def _job(home: Home, run_id: str, resolved: Resolved, engine: EngineOptions) -> SelftestJob:
    return SelftestJob(
        run_id=run_id,
        plan=resolved.plan,
        lora=resolved.run.lora,
        train=resolved.run.train_spec,
        engine=engine,
        isolation=resolved.policy.rules(resolved.dataset.class_).isolation,
        model_dir=str(home.model(resolved.model.sha256)),
        model_sha256=resolved.model.sha256,
    )
