"""What the ledger says of itself: how it was made, who signs it, its clock, its erased bodies."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from appliance.events.event import Digest, Event, Facts, Id, Text, Time, Told, Whole


class KeyFacts(Facts):
    """A verifier key of the log."""

    algorithm: Text
    id: Id
    vkey: Text


class LedgerCreated(Event):
    """The first entry: name of the log, its first keys, and the digests of its tables and guards."""

    type: ClassVar[str] = "ledger.created"
    told: ClassVar[Told] = Told.BUNDLE

    origin: Text
    keys: list[KeyFacts]
    definitions: dict[str, Digest] = Field(validation_alias="schema", serialization_alias="schema")


class LedgerUpgraded(Event):
    """A later release brought the tables to its own revision."""

    type: ClassVar[str] = "ledger.upgraded"

    revision: Text
    definitions: dict[str, Digest] = Field(validation_alias="schema", serialization_alias="schema")


class LedgerRekeyed(Event):
    """The log changed its signing keys; the old and the new ones signed the statement."""

    type: ClassVar[str] = "ledger.rekeyed"
    told: ClassVar[Told] = Told.BUNDLE

    root: Digest
    old: list[str]
    keys: list[KeyFacts]
    signatures: list[str]


class ClockRegression(Event):
    """The machine's clock stepped back; the log's time stands still until it has caught up."""

    type: ClassVar[str] = "clock.regression"

    last: Time
    observed: Time


class BodyErased(Event):
    """Name and reason of an entry were erased."""

    type: ClassVar[str] = "body.erased"
    about: ClassVar[str] = "index"

    index: Whole
