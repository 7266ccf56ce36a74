"""What is said of policies."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Digest, Event, Text, Told


class PolicyActivated(Event):
    """A policy came into force."""

    type: ClassVar[str] = "policy.activated"
    about: ClassVar[str] = "sha256"
    told: ClassVar[Told] = Told.BUNDLE | Told.REPORT

    name: Text
    sha256: Digest
