"""What is said of the machine that trains."""

from __future__ import annotations

from typing import ClassVar, Literal

from appliance.events.event import Digest, Event, Facts, Text


class OutcomeFacts(Facts):
    """One check of an acceptance."""

    name: Text
    state: Literal["passed", "failed", "not run", "not needed"]


class MachineExamined(Event):
    """`make accept-gpu` examined the machine with this software; the document has the details and the figures."""

    type: ClassVar = "machine.examined"

    accepted: bool
    device: Literal["cpu", "cuda"]
    hardware: Text
    examined: Text
    checks: list[OutcomeFacts]
    libraries: dict[str, str]
    document_sha256: Digest


class MachineAttested(Event):
    """The server was probed from inside every unit and from outside; the signed document has the details."""

    type: ClassVar = "machine.attested"

    attested: bool
    host: Text
    probed: Text
    release: Text
    passed: int
    failed: list[Text]
    document_sha256: Digest
