"""Does an ingest, a run, a plan fit inside the policy? Each check names the policy, the class and the rule it broke."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import ConfigInvalid, PolicyDenied
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.policy.policy import ClassRules, Policy
from appliance.policy.run_file import RunFile


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What the catalog says of a dataset; all of it public.

    Attributes:
      id: as in run.yaml.
      dataset_class: the class of data it was ingested as.
      unit: its unit of privacy.
      declared_units: how many units its owner declared.
    """

    id: str
    dataset_class: str
    unit: UnitOfPrivacy
    declared_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the catalog says of a base model: its id and digest."""

    id: str
    sha256: str


def check_ingest(policy: Policy, dataset_class: str, unit: UnitOfPrivacy, declared_units: int) -> ClassRules:
    """Refuse data of this class with this unit of privacy, before a file is opened, if they may not be ingested.

    Returns:
      The rules that hold for the data.

    Raises:
      PolicyDenied: for an unknown class, a unit of privacy it does not allow, or too few declared units.
    """
    rules = policy.rules(dataset_class)
    if unit.kind not in rules.unit.kinds:
        allowed = " or ".join(rules.unit.kinds)
        raise _deny(
            policy, dataset_class, "unit.kinds", f"the unit of privacy '{unit.kind}' is not allowed", f"use {allowed}"
        )
    if unit.max_records > rules.unit.max_records:
        message = f"{unit.max_records} records for each subject are more than {rules.unit.max_records}"
        raise _deny(policy, dataset_class, "unit.max_records", message, "keep fewer records of each subject")
    _check_units(policy, dataset_class, rules, declared_units)
    return rules


def check_ingested(policy: Policy, dataset_class: str, *, accepted: int, rejected: int, units: int) -> None:
    """Refuse what was read if it may not become a dataset. The counts are private: the refusal names the rule alone.

    Args:
      policy: the active policy.
      dataset_class: the class of data.
      accepted: rows that became records, duplicates included.
      rejected: rows that were refused as malformed.
      units: units of privacy found.

    Raises:
      PolicyDenied: if too many rows were rejected or too few units found.
    """
    rules = policy.rules(dataset_class)
    if rejected > rules.max_rejected_fraction * (accepted + rejected):
        message = f"more than the fraction {rules.max_rejected_fraction:g} of all rows was rejected"
        raise _deny(
            policy, dataset_class, "max_rejected_fraction", message, "mend the rejected rows, they are listed by line"
        )
    if units < rules.min_units:
        message = f"the files hold fewer than {rules.min_units} units of privacy"
        raise _deny(policy, dataset_class, "min_units", message, "a small group cannot hide its members")


def check_run(policy: Policy, run: RunFile, dataset: DatasetFacts, model: ModelFacts) -> ClassRules:
    """Refuse a run that may not be asked for, before a plan is made. `check_plan` follows, once there is one.

    Returns:
      The rules that hold for the run.

    Raises:
      ConfigInvalid: if the run file names another dataset, unit of privacy or base digest than the catalog.
      PolicyDenied: for a base model, unit or delta that the class of data does not allow. (The lifetime epsilon is
        the budget's business: `appliance.privacy.budget`.)
    """
    _check_names(run, dataset, model)
    rules = check_ingest(policy, dataset.dataset_class, dataset.unit, dataset.declared_units)
    if rules.bases != "any" and model.sha256 not in rules.bases:
        message = f"base model {model.id} is not one of those allowed"
        raise _deny(policy, dataset.dataset_class, "bases", message, "choose a base model whose digest is listed")
    _check_delta(policy, dataset.dataset_class, rules, run.delta)
    return rules


def check_plan(policy: Policy, dataset: DatasetFacts, plan: PrivacyPlan) -> None:
    """Check that the privacy plan keeps within the policy, and is a plan for this dataset.

    Raises:
      ConfigInvalid: if the plan was made for another unit of privacy or number of units.
      PolicyDenied: for a delta or a noise multiplier that the class of data does not allow.
    """
    if (plan.unit, plan.declared_units) != (dataset.unit, dataset.declared_units):
        raise ConfigInvalid(f"the privacy plan was not made for dataset {dataset.id}")
    rules = check_ingest(policy, dataset.dataset_class, plan.unit, plan.declared_units)
    _check_delta(policy, dataset.dataset_class, rules, plan.delta)
    if plan.noise_multiplier < rules.min_noise_multiplier:
        message = f"noise multiplier {plan.noise_multiplier:.4g} is below {rules.min_noise_multiplier:g}"
        hint = "lower epsilon, take more steps, or a larger expected_batch_size"
        raise _deny(policy, dataset.dataset_class, "min_noise_multiplier", message, hint)


def _check_names(run: RunFile, dataset: DatasetFacts, model: ModelFacts) -> None:
    if run.dataset.id != dataset.id or run.base.id != model.id:
        raise ConfigInvalid(f"the run file is not about dataset {dataset.id} and base model {model.id}")
    if run.base.sha256 != model.sha256:
        hint = "write the run file again with `appliance train plan`"
        raise ConfigInvalid(f"base.sha256 is not the digest of the imported model {model.id}", hint=hint)
    if run.dataset.unit is not None and run.dataset.unit != dataset.unit:
        hint = "a unit of privacy is fixed at ingest: leave `unit` out, or ingest the data again"
        raise ConfigInvalid(f"data.unit is not the unit of privacy of dataset {dataset.id}", hint=hint)


def _check_units(policy: Policy, dataset_class: str, rules: ClassRules, declared_units: int) -> None:
    if declared_units < rules.min_units:
        message = f"{declared_units} declared units are fewer than {rules.min_units}"
        raise _deny(policy, dataset_class, "min_units", message, "a small group cannot hide its members")


def _check_delta(policy: Policy, dataset_class: str, rules: ClassRules, delta: float | None) -> None:
    if delta is not None and delta > rules.max_delta:
        message = f"delta {delta:g} is above the ceiling {rules.max_delta:g}"
        raise _deny(policy, dataset_class, "max_delta", message, "give a smaller delta, or ingest more units")


def _deny(policy: Policy, dataset_class: str, rule: str, message: str, hint: str) -> PolicyDenied:
    return PolicyDenied(f"{message} (policy {policy.name}, class {dataset_class}, rule {rule})", hint=hint)
