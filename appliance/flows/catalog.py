"""What the home holds, by name or id: datasets, base models, runs, and the policy in force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from appliance.errors import ArtefactMissing, Busy, ConfigInvalid, IntegrityError, PolicyDenied, UsageError
from appliance.events.model import ModelImported
from appliance.events.states import CatalogState, PolicyState
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, ModelRow, PolicyRow, RunRow
from appliance.ledger.transaction import Reading, Transaction
from appliance.policy.policy import Policy, parse
from appliance.privacy.lifetime import lifetime_delta

Rows = Reading | Transaction
_RUNS = "`appliance train status` lists the runs"


def find_dataset(rows: Rows, named: str) -> DatasetRow:
    """Find a dataset by its name or id. Raises `ArtefactMissing`."""
    return choose_dataset(rows.datasets.list(), named)


def choose_dataset(datasets: Sequence[DatasetRow], named: str) -> DatasetRow:
    """Choose a dataset by its name or id from some. Raises `ArtefactMissing`."""
    for row in datasets:
        if named in (row.id, row.name):
            return row
    raise ArtefactMissing(f"no dataset {named}", hint="`appliance data list` shows what there is")


def require_active(row: DatasetRow) -> None:
    """Refuse a dataset that is retired. Raises `PolicyDenied`."""
    if row.state != CatalogState.ACTIVE:
        hint = "only runs that were reserved before go on; ingest the data that may still be used as another dataset"
        raise PolicyDenied(f"dataset {row.name} is {row.state}", hint=hint)


def find_model(rows: Rows, named: str) -> ModelRow:
    """Find a base model by its name or digest. Raises `ArtefactMissing`."""
    for row in rows.models.list():
        if named in (row.id, row.sha256):
            return row
    raise ArtefactMissing(f"no model {named}", hint="import it first: `appliance model import PATH`")


def imported(ledger: LedgerReader, row: ModelRow) -> ModelImported:
    """Read what the newest entry says of a base model's import.

    Raises:
      IntegrityError: there is none, or it is of another model.
    """
    for entry in ledger.entries(ModelImported, subject=row.id, newest_first=True, limit=1):
        found = ModelImported.of(entry.leaf["facts"])
        if found.sha256 == row.sha256:
            return found
    raise IntegrityError(f"no entry of the ledger says that model {row.id} was imported")


def require_trainable(ledger: LedgerReader, row: ModelRow, precision: str) -> None:
    """Raise `ConfigInvalid` if the trial at import found this precision not to be exact; untried ones pass."""
    obstacle = (imported(ledger, row).trained or {}).get(precision)
    if obstacle:
        hint = "docs/models.md lists what can be trained, and in which precision"
        raise ConfigInvalid(f"model {row.id} cannot be trained in {precision}: {obstacle}", hint=hint, where="base")


def find_run(ledger: LedgerReader, run_id: str) -> RunRow:
    """Find a run by its id. Raises `ArtefactMissing`."""
    with ledger.read() as rows:
        row = rows.runs.find(run_id)
    if row is None:
        raise ArtefactMissing(f"no run {run_id}", hint=_RUNS)
    return row


def identify_run(rows: Rows, named: str) -> str:
    """Find the id of the run that has this id, or that alone has this name.

    Raises:
      ArtefactMissing: there is none.
      UsageError: several runs have this name.
    """
    runs = rows.runs.list()
    found = [row.id for row in runs if row.id == named] or [row.id for row in runs if row.name == named]
    if len(found) > 1:
        raise UsageError(f"{len(found)} runs are called {named}", hint=f"name one by its id: {', '.join(found)}")
    if not found:
        raise ArtefactMissing(f"no run {named}", hint=_RUNS)
    return found[0]


def name_run(rows: Rows, wanted: str | None, otherwise: str) -> str:
    """Name a run as it is wanted, or like `otherwise`. Raises `UsageError` where another run has the wanted name."""
    if wanted is None:
        return free_run_name(rows, otherwise)
    if any(row.name == wanted for row in rows.runs.list()):
        raise UsageError(f"a run named {wanted} exists", hint="choose another name with --name")
    return wanted


def free_run_name(rows: Rows, like: str) -> str:
    """Find a name that no run has: `like`, or with the first number behind it that is free."""
    taken = {row.name for row in rows.runs.list()}
    numbered = (f"{like[:120]}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain((like,), numbered) if name not in taken)


def policy_in_force(ledger: LedgerReader) -> Policy:
    """Read the policy in force. Raises `IntegrityError` where there is not exactly one, or not the one it names."""
    with ledger.read() as rows:
        active = _active(rows)
    if len(active) != 1:
        raise IntegrityError(f"{len(active)} policies are active, expected one")
    policy = parse(active[0].text.encode(), f"policy {active[0].name}")
    if policy.digest != active[0].sha256:
        raise IntegrityError("the active policy is not the one its digest names")
    return policy


def require_in_force(rows: Rows, policy: Policy) -> None:
    """Raise `Busy` unless this policy, by which something was decided, is still in force."""
    if [row.sha256 for row in _active(rows)] != [policy.digest]:
        raise Busy("another policy came into force meanwhile; nothing was written", hint="try again")


def _active(rows: Rows) -> list[PolicyRow]:
    return [row for row in rows.policies.list() if row.state == PolicyState.ACTIVE]


def limits(policy: Policy, class_name: str, declared_units: int) -> tuple[float, float]:
    """Find the lifetime epsilon and delta of a dataset of a class; the strictest if the policy dropped the class."""
    named = policy.classes.get(class_name)
    rules = [named] if named else list(policy.classes.values())
    ceiling = min(rule.max_delta for rule in rules)
    return min(rule.max_epsilon for rule in rules), lifetime_delta(declared_units, ceiling)


def unit_of(dataset: DatasetRow) -> UnitOfPrivacy:
    """Say with which unit of privacy a dataset was ingested."""
    _, _, split = dataset.format.partition(":")
    return UnitOfPrivacy(
        kind=dataset.unit_kind, key=dataset.unit_key, max_records=dataset.max_records, split=split or None
    )


def plan_of(run: RunRow) -> PrivacyPlan:
    """Read the plan of a run from its row."""
    return PrivacyPlan.model_validate_json(run.plan)
