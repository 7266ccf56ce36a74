"""What is said of training runs, and of the tests of the engine before them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from appliance.events.event import (
    Digest,
    Event,
    Facts,
    Id,
    Nonce,
    Number,
    Rate,
    Refusal,
    Text,
    Told,
    Whole,
    optional,
)
from appliance.events.states import RunState

OUTSIDE = Told.BUNDLE | Told.REPORT


class PhaseFacts(Facts):
    """A phase of a curriculum as it is planned."""

    name: Text
    steps: Whole
    declared_units: Whole
    expected_batch_size: Whole
    sample_rate: Rate
    field: Text = optional()
    values: list[str] = optional()


class PlanFacts(Facts):
    """A privacy plan."""

    unit: Literal["record", "subject"]
    max_records: Whole
    neighbouring: Text
    declared_units: Whole
    expected_batch_size: Whole
    sample_rate: Rate
    steps: Whole
    attempts: Whole
    max_grad_norm: Number
    clipping: Text
    noise_multiplier: Number
    epsilon: Number
    delta: Number
    sampler_delta: Number
    accountant: Text
    phases: list[PhaseFacts] = optional()
    split: Text = optional()


class RunReserved(Event):
    """The worst case of a run was charged to its dataset, before anything was opened.

    `max_loss` are the gates of its run file: what its model may lose in a format, in percentage points of accuracy.
    """

    type: ClassVar[str] = "run.reserved"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE

    run_id: Id
    dataset_id: Id
    model_id: Id
    spec_sha256: Digest
    plan: PlanFacts
    epsilon_before: Number
    epsilon_after: Number
    cap: Number
    lifetime_delta: Number = optional()
    filter_order: Number = optional()
    counted_by: Text = optional()
    max_loss: dict[str, Number] = optional()


class CheckFacts(Facts):
    """One check of the engine: what was seen, beside the bound that it had to keep."""

    name: Text
    passed: bool
    value: Text
    bound: Text
    count: Whole


class ProvedRowsFacts(Facts):
    """Row counts that give a record of this padded length the same bits, and the digest of those."""

    length: Whole
    counts: list[Whole]
    bits: Digest


class ProofFacts(Facts):
    """What was proved for every shape of micro-batch, and what it holds for."""

    shapes: Digest
    machine: Digest
    rows: list[ProvedRowsFacts]
    shared: bool


class SelfTested(Event):
    """The engine was tested for the job of a run, on synthetic data."""

    type: ClassVar[str] = "audit.selftest"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE

    run_id: Id
    spec_sha256: Digest
    passed: bool
    checks: list[CheckFacts]
    result_sha256: Digest
    isolation: dict[str, str]
    libraries: dict[str, str]
    proof: ProofFacts = optional()


class _Start(Event):
    """A worker is about to start.

    Attributes:
      unseen: how many attempts beyond those recorded it may make before the next are recorded.
    """

    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE
    opens: ClassVar[str] = "dataset_id"

    run_id: Id
    dataset_id: Id
    attempts_left: Whole
    nonce: Nonce
    unseen: Whole = optional()
    ranks: Whole = optional()
    nnodes: Whole = optional()
    nodes: list[Digest] = optional()


class RunStarted(_Start):
    """The first worker of a run is about to start; the key agent releases the key of its dataset."""

    type: ClassVar[str] = "run.started"


class RunResumed(_Start):
    """Another worker of a run is about to start."""

    type: ClassVar[str] = "run.resumed"


class RunCheckpointed(Event):
    """The journal had come so far: whoever rolls it back further is noticed.

    Attributes:
      unseen: how many attempts more may be made before the next are recorded; 0 once the worker has ended.
    """

    type: ClassVar[str] = "run.checkpointed"
    about: ClassVar[str] = "run_id"

    run_id: Id
    attempts: Whole
    journal_sha256: Digest
    unseen: Whole = optional()


class PhaseSpent(Facts):
    """What a phase was charged."""

    name: Text
    sample_rate: Rate
    attempts: Whole


class RunEnded(Event):
    """What a run that has ended was charged: its attempts, and epsilon by three accountants.

    Attributes:
      state: the state in which the run is then.
    """

    state: ClassVar[RunState]
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE
    charges: ClassVar[bool] = True

    run_id: Id
    dataset_id: Id
    attempts: Whole
    epsilon_pld: Number
    epsilon_prv: Number
    epsilon_rdp: Number
    epsilon_charged: Number
    delta: Number
    sampler_delta: Number
    noise_multiplier: Number
    sample_rate: Rate
    phases: list[PhaseSpent] = optional()


class RunSettled(RunEnded):
    """A run finished."""

    type: ClassVar[str] = "run.settled"
    state: ClassVar[RunState] = RunState.FINISHED

    steps: Whole
    adapter_sha256: Digest
    isolation: dict[str, str]
    libraries: dict[str, str]
    epsilon_curve: list[Annotated[tuple[Whole, Number], Field(strict=False)]] = optional()
    odds_bound: Number = optional()


class RunFailed(RunEnded):
    """A run ended with an error; what it sampled is charged."""

    type: ClassVar[str] = "run.failed"
    state: ClassVar[RunState] = RunState.FAILED

    code: Whole
    reason: Text
    error: Text = optional()


class RunAborted(RunEnded):
    """A run was ended by somebody; what it sampled is charged."""

    type: ClassVar[str] = "run.aborted"
    state: ClassVar[RunState] = RunState.ABORTED


class RunRefused(Refusal):
    """A run was not reserved."""

    type: ClassVar[str] = "run.refused"
