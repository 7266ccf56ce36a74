"""policy.yaml: what the owner of the data allows, per class of data. Every key but `public_data` is enforced."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from appliance.errors import PolicyDenied
from appliance.jobs.job import IsolationSpec
from appliance.jobs.plan import UnitKind
from appliance.policy.parse import parse_value
from appliance.values import Count, Digest, Positive, Value, Word


class UnitRule(Value):
    """Which units of privacy may be chosen, and how many records one subject may contribute at most."""

    kinds: Annotated[tuple[Annotated[UnitKind, Field(strict=False)], ...], Field(min_length=1, max_length=2)]
    max_records: Count


class ClassRules(Value):
    """The rules for one class of data.

    Attributes:
      max_epsilon: lifetime epsilon per dataset, over all runs on it and on datasets that overlap it.
      max_delta: the largest delta a run may be stated at.
      min_units: the least number of units of privacy a dataset must have.
      unit: which units of privacy are allowed.
      min_noise_multiplier: the least noise of a run, whatever its epsilon.
      bases: "any", or the digests of the base models that may be trained on this data.
      max_rejected_fraction: an ingest that rejects more of its rows than this is refused.
      public_data: a statement of the data's owner that they are public already; nothing is allowed by it yet.
      watermark: whether a run needs a watermark key, to which the ledger commits before training.
      isolation: what the worker's sandbox must reach before it opens the data.
    """

    max_epsilon: Positive
    max_delta: Annotated[float, Field(gt=0, lt=1)]
    min_units: Count
    unit: UnitRule
    min_noise_multiplier: Positive
    bases: Literal["any"] | Annotated[tuple[Digest, ...], Field(min_length=1)]
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)]
    public_data: bool = False
    watermark: Literal["required", "optional"] = "optional"
    isolation: IsolationSpec = IsolationSpec()


class Policy(Value):
    """A policy, with the exact bytes it was read from and their digest."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    schema_: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    name: Word
    description: str = ""
    classes: dict[Word, ClassRules]

    _text: bytes = PrivateAttr(b"")

    @model_validator(mode="after")
    def _has_default(self) -> Self:
        if "default" not in self.classes:
            raise ValueError("there is no class 'default'; it holds for data that name no class")
        return self

    @property
    def text(self) -> bytes:
        """The bytes of the file, as they were."""
        return self._text

    @property
    def digest(self) -> str:
        """SHA-256 of the exact bytes of the file, hex. A comment that changes is another policy, to be safe."""
        return hashlib.sha256(self._text).hexdigest()

    def rules(self, dataset_class: str = "default") -> ClassRules:
        """Find the rules for `dataset_class`. Raises `PolicyDenied` for a class the policy does not know."""
        found = self.classes.get(dataset_class)
        if found is None:
            known = ", ".join(sorted(self.classes))
            raise PolicyDenied(f"policy {self.name} has no class of data of that name", hint=f"it has: {known}")
        return found


def parse(data: bytes, where: str) -> Policy:
    """Read a policy file.

    Args:
      data: the bytes of the file.
      where: its name, for messages.

    Raises:
      ConfigInvalid: with file, line and key.
    """
    policy = parse_value(Policy, data, where)
    policy._text = data
    return policy
