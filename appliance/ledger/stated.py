"""What a ledger says of itself: the definitions of its database, and how the home is configured that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from appliance.errors import IntegrityError
from appliance.events.event import Event
from appliance.events.home import HomeConfigured
from appliance.events.ledger import LedgerCreated, LedgerUpgraded
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import stream
from appliance.ledger.entries import read_registered
from appliance.ledger.keyring import Keys, describe
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.register import Found, Register

_FIRST = "SELECT leaf FROM entry WHERE idx = 0"
_UPGRADED = f"SELECT leaf FROM entry WHERE type = '{LedgerUpgraded.type}' ORDER BY idx DESC LIMIT 1"  # noqa: S608


def first_events(config: LedgerConfig, keys: Keys, definitions: dict[str, str]) -> list[Event]:
    """List what a new ledger begins with: how it was made and, where it belongs to one, how its home is configured."""
    created = LedgerCreated(origin=config.origin, keys=describe(keys), definitions=definitions)
    return [created] if config.configuration is None else [created, config.configuration]


def read_definitions(connection: Connection) -> dict[str, str]:
    """Read the definitions that the first entry or the newest `ledger.upgraded` states, by the word of the database.

    Raises `IntegrityError` where an entry does not say so.
    """

    def read() -> dict[str, Any]:
        first, upgraded = next(stream(connection, _FIRST), None), next(stream(connection, _UPGRADED), None)
        if first is None:
            raise KeyError
        facts: dict[str, Any] = parse_leaf((upgraded or first)[0])["facts"]
        return facts

    return _definitions(read)


def prove_definitions(connection: Connection, register: Register) -> dict[str, str]:
    """Read the same from a proved snapshot."""

    def read() -> dict[str, Any]:
        newest = register.newest(LedgerUpgraded.type) or register.newest(LedgerCreated.type)
        if newest is None:
            raise KeyError
        facts: dict[str, Any] = read_registered(connection, newest)["facts"]
        return facts

    return _definitions(read)


def _definitions(read: Callable[[], dict[str, Any]]) -> dict[str, str]:
    try:
        return dict(read()["schema"])
    except (KeyError, TypeError, ValueError):
        raise IntegrityError("the ledger does not say how it was made") from None


def require_configuration(connection: Connection, stated: Found, wanted: HomeConfigured) -> None:
    """Compare the home's configuration with that of the newest entry which states one.

    Raises:
      IntegrityError: it is another one.
    """
    if HomeConfigured.of(read_registered(connection, stated)["facts"]) != wanted:
        raise IntegrityError(
            f"entry {stated.index} says that database, anchor or epoch keys lie elsewhere than the home says",
            hint="undo the change of home.json; `appliance ledger relocate` is how they are moved",
        )
