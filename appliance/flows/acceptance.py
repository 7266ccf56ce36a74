"""`doctor --record`: what `make accept-gpu` or an attestation found on this machine becomes an entry of the ledger.

The entry states the device, the libraries, every check with its state, and the digest of the document, which holds the
details and the figures. An acceptance holds for the software that made it, so that of other software is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.events.machine import MachineAttested, MachineExamined, OutcomeFacts
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.ledger.leaf import software
from appliance.values import Digest, Line, Value

Word = Annotated[Line, Field(max_length=128)]


class Software(Value):
    """Version and source digest of the appliance that was examined."""

    version: Word
    sha256: Digest


class Outcome(Value):
    """One check of an acceptance."""

    name: Word
    state: Literal["passed", "failed", "not run", "not needed"]
    detail: str = ""


class Acceptance(Value):
    """The document that `bench/accept.py` writes."""

    schema_: Literal["appliance.accept/1"] = Field(alias="schema")
    accepted: bool
    device: Literal["cpu", "cuda"]
    hardware: Word
    date: Word
    software: Software
    libraries: Annotated[dict[Word, Word], Field(max_length=32)]
    checks: Annotated[tuple[Outcome, ...], Field(min_length=1, max_length=256)]
    figures: tuple[dict[str, Any], ...]

    @model_validator(mode="after")
    def _says_what_its_checks_say(self) -> Self:
        if self.accepted != all(check.state in ("passed", "not needed") for check in self.checks):
            raise ValueError("the verdict is not that of the checks")
        return self


class Probe(Value):
    """One check of an attestation."""

    name: Word
    state: Literal["passed", "failed"]
    detail: str


class Attestation(Value):
    """The document that the deployment's `attest.py` writes and signs."""

    schema_: Literal["appliance.attest/1"] = Field(alias="schema")
    attested: bool
    host: Word
    machine: Word
    date: Word
    release: Word
    baseline_sha256: Digest
    checks: Annotated[tuple[Probe, ...], Field(min_length=1, max_length=4096)]

    @model_validator(mode="after")
    def _says_what_its_checks_say(self) -> Self:
        if self.attested != all(check.state == "passed" for check in self.checks):
            raise ValueError("the verdict is not that of the checks")
        return self


def record(home: Home, path: Path, operator: Operator) -> tuple[int, MachineExamined | MachineAttested]:
    """Write the entry, whatever the verdict is.

    Returns:
      Index and event of the entry.

    Raises:
      ArtefactMissing: there is no such file.
      DataInvalid: it is neither kind of document, or an acceptance of other software.
    """
    try:
        data = path.read_bytes()
        made = _parse(data)
    except OSError:
        raise ArtefactMissing("there is no such file", where=str(path)) from None
    except ValidationError:
        hint = "`make accept-gpu` writes one, the play `attest` the other"
        raise DataInvalid("neither an acceptance nor an attestation", hint=hint, where=str(path)) from None
    if isinstance(made, Acceptance) and made.software.model_dump() != software():
        hint = "examine the machine again with this software: `make accept-gpu`"
        raise DataInvalid("this acceptance was made with other software", hint=hint, where=str(path))
    sha256 = hashlib.sha256(data).hexdigest()
    event = _event(made, sha256) if isinstance(made, Acceptance) else _attested(made, sha256)
    with Desk.open(home, operator) as desk:
        return desk.record(event), event


def _parse(data: bytes) -> Acceptance | Attestation:
    kind: type[Acceptance] | type[Attestation] = Attestation if b"appliance.attest/1" in data else Acceptance
    return kind.model_validate_json(data)


def _attested(made: Attestation, sha256: str) -> MachineAttested:
    return MachineAttested(
        attested=made.attested,
        host=made.host,
        probed=made.date,
        release=made.release,
        passed=sum(check.state == "passed" for check in made.checks),
        failed=[check.name for check in made.checks if check.state == "failed"],
        document_sha256=sha256,
    )


def _event(made: Acceptance, sha256: str) -> MachineExamined:
    return MachineExamined(
        accepted=made.accepted,
        device=made.device,
        hardware=made.hardware,
        examined=made.date,
        checks=[OutcomeFacts(name=check.name, state=check.state) for check in made.checks],
        libraries=dict(made.libraries),
        document_sha256=sha256,
    )
