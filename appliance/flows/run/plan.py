"""`train plan`: from a dataset, a model and an epsilon to a complete run file, and from a run file to a privacy plan.

Nothing here opens private data: every number follows from what the data owner declared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from appliance.errors import ArtefactMissing, ConfigInvalid, IntegrityError, PolicyDenied
from appliance.events.states import Purpose
from appliance.flows import budget, catalog
from appliance.flows.budget import Afforded
from appliance.flows.home import Home
from appliance.flows.run import curriculum
from appliance.jobs.plan import PrivacyPlan
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, ModelRow
from appliance.policy import check, run_file
from appliance.policy.check import DatasetFacts, ModelFacts
from appliance.policy.policy import Policy
from appliance.policy.run_file import RunFile
from appliance.privacy.lifetime import Spend, run_delta
from appliance.privacy.plan import make_plan

# Defaults, measured on public stand-ins (docs/utility.md). At a given epsilon a few large batches beat many small
# ones; with more units each step can be smaller in proportion, so the steps grow with the square root of their number.
# AdamW divides the noise by its own size, so that it moves each weight by about rate x sqrt(steps) whatever epsilon
# is: the rate falls with the square root of the steps.
EPOCHS = 1.0
LEAST_STEPS, AT_UNITS = 6, 600
LEARNING_RATE, AT_STEPS = 1e-2, 6
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the operator asked of `train plan`; None leaves a choice to the defaults.

    A run that is not named is named like `named_like`, with a number behind it where a run has this name.
    """

    epsilon: float
    name: str | None = None
    named_like: str = "run"
    steps: int | None = None
    expected_batch_size: int | None = None
    lr: float | None = None
    max_tokens: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A run file with everything it names, found and checked, and the privacy plan that follows from it.

    Attributes:
      conversations: which shapes of conversation the base's chat template carries; empty where none is used or the
        model was imported before that was tried.
    """

    run: RunFile
    dataset: DatasetRow
    model: ModelRow
    policy: Policy
    plan: PrivacyPlan
    parameters: int
    conversations: Mapping[str, bool] = field(default_factory=dict)

    @property
    def spend(self) -> Spend:
        """What the run would reserve."""
        return Spend.of_plan("(this run)", self.dataset.id, self.plan)


def draft(home: Home, dataset: str, base: str, request: PlanRequest) -> RunFile:
    """Draft a complete run file for `dataset` and `base` at the epsilon asked for."""
    with home.rows() as rows:
        chosen, based = catalog.find_dataset(rows, dataset), catalog.find_model(rows, base)
        name = catalog.name_run(rows, request.name, request.named_like)
    value = {
        "schema": 1,
        "name": name,
        "base": {"id": based.id, "sha256": based.sha256},
        "data": [{"id": chosen.id, "unit": catalog.unit_of(chosen).model_dump(exclude_none=True)}],
        "template": {"from": "base" if based.has_chat_template else "none", "train_on": "completion"},
        **settings(request, chosen.declared_units),
    }
    return run_file.parse(json.dumps(value).encode(), "the drafted run file")


def settings(request: PlanRequest, declared_units: int) -> dict[str, dict[str, Any]]:
    """Choose `lora`, `train` and `privacy`; what the request leaves open follows from the declared units."""
    steps = request.steps or default_steps(declared_units)
    batch = request.expected_batch_size or math.ceil(EPOCHS * declared_units / steps)
    return {
        "lora": {"r": request.rank or 8, "alpha": 16.0, "targets": "all-linear", "freeze_a": True},
        "train": {
            "steps": steps,
            "expected_batch_size": min(batch, declared_units),
            "max_tokens": request.max_tokens or MAX_TOKENS,
            "lr": request.lr or default_rate(steps),
            "init_seed": 7,
            "spare_steps": 1,
        },
        "privacy": {"epsilon": request.epsilon, "delta": "auto", "max_grad_norm": 1.0, "clipping": "normalised"},
    }


def default_steps(declared_units: int) -> int:
    """Choose the sampled steps if the operator names none: 6 up to 600 units, then growing with their square root."""
    return max(LEAST_STEPS, round(LEAST_STEPS * math.sqrt(declared_units / AT_UNITS)))


def default_rate(steps: int) -> float:
    """Choose the learning rate if none is named: 0.01 for up to 6 steps, then falling with their square root."""
    return LEARNING_RATE * min(1.0, math.sqrt(AT_STEPS / steps))


def load(path: Path) -> RunFile:
    """Read the run file at `path`.

    Raises:
      ArtefactMissing: there is none.
      ConfigInvalid: it does not follow the schema.
    """
    try:
        return run_file.parse(path.read_bytes(), str(path))
    except (FileNotFoundError, IsADirectoryError):
        hint = "write one: `appliance train plan DATASET MODEL --epsilon E --out run.yaml`"
        raise ArtefactMissing(f"no run file {path}", hint=hint) from None


def resolve(ledger: LedgerReader, run: RunFile) -> Resolved:
    """Find what a run file names and check that the run fits inside the policy.

    Raises:
      ArtefactMissing: the dataset or the model is not here.
      IntegrityError: the model here is not the one the run file means.
      PolicyDenied: the policy does not allow this run.
      ConfigInvalid: the plan is impossible.
    """
    policy = catalog.policy_in_force(ledger)
    dataset, base = _find_named(ledger, run)
    unit = catalog.unit_of(dataset)
    facts = DatasetFacts(id=dataset.id, dataset_class=dataset.class_, unit=unit, declared_units=dataset.declared_units)
    named = run.model_copy(update={"data": (run.dataset.model_copy(update={"id": dataset.id}),)})
    rules = check.check_run(policy, named, facts, ModelFacts(id=base.id, sha256=base.sha256))
    if run.lora.quantize_base != "none":
        catalog.require_trainable(ledger, base, run.lora.quantize_base)
    parameters = trainable_parameters(run, base)
    plan = make_plan(
        unit=unit,
        declared_units=dataset.declared_units,
        expected_batch_size=run.train.expected_batch_size,
        steps=run.steps(dataset.declared_units),
        spare_steps=run.train.spare_steps,
        epsilon=run.privacy.epsilon,
        delta=run.delta or run_delta(dataset.declared_units, rules.max_delta),
        clipping=run.privacy.clipping,
        max_grad_norm=run.privacy.max_grad_norm,
        trainable_parameters=parameters,
        phases=curriculum.phases(ledger, run, dataset),
    )
    check.check_plan(policy, facts, plan)
    return Resolved(
        run=run,
        dataset=dataset,
        model=base,
        policy=policy,
        plan=plan,
        parameters=parameters,
        conversations={} if run.template.from_ == "none" else catalog.imported(ledger, base).conversations or {},
    )


def _find_named(ledger: LedgerReader, run: RunFile) -> tuple[DatasetRow, ModelRow]:
    """Find dataset and model of a run file, which must be what it means."""
    with ledger.read() as rows:
        dataset, base = catalog.find_dataset(rows, run.dataset.id), catalog.find_model(rows, run.base.id)
    if dataset.purpose != Purpose.TRAINING:
        raise PolicyDenied(f"dataset {dataset.name} was ingested for {dataset.purpose}, not for training")
    if base.sha256 != run.base.sha256:
        raise IntegrityError(
            f"model {base.id} is not the one the run file means", hint="compare `appliance model list`"
        )
    if run.template.from_ != "none" and not base.has_chat_template:
        hint = "set template.from to none: records are then concatenated as they are"
        raise ConfigInvalid(f"model {base.id} has no chat template", hint=hint, where="template.from")
    return dataset, base


def trainable_parameters(run: RunFile, base: ModelRow) -> int:
    """Count the adapter's parameters: r (in + out) summed over the target modules, r out where A is frozen.

    Raises:
      ConfigInvalid: no target matches, or the rank is larger than a dimension of one.
    """
    shapes: dict[str, tuple[int, int]] = orjson.loads(base.shapes)
    for name in run.lora.choose(shapes):
        if run.lora.r > min(shapes[name]):
            raise ConfigInvalid(f"rank {run.lora.r} is larger than a dimension of {name}", where="lora.r")
    return run.lora.trainable(shapes)


def afford(ledger: LedgerReader, resolved: Resolved) -> Afforded:
    """Check that the dataset is not retired, and the lifetime budget of each that the run would spend from.

    Raises:
      PolicyDenied: the dataset is retired.
      BudgetExceeded: see `budget.afford`.
    """
    catalog.require_active(resolved.dataset)
    return budget.afford(ledger, resolved.policy, resolved.spend)


def preview(home: Home, run: RunFile) -> tuple[Resolved, Afforded]:
    """Work out what `train start` would do with this run file: the plan, and what it leaves of the lifetime budget."""
    with home.reader() as ledger:
        resolved = resolve(ledger, run)
        return resolved, afford(ledger, resolved)
