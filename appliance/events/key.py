"""What is said of the store's keys."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Digest, Event, Text, Time, Whole


class KeyCreated(Event):
    """A root key was drawn, with the first key-encryption key."""

    type: ClassVar[str] = "key.created"

    kind: Text
    epoch: Whole
    slots: list[str]
    body_key_sha256: Digest


class KeyUnlocked(Event):
    """The key agent was started."""

    type: ClassVar[str] = "key.unlocked"

    until: Time


class KeyLocked(Event):
    """The key agent was told to forget the root key."""

    type: ClassVar[str] = "key.locked"
