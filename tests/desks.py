"""A desk at a ledger that a test made, in a home that has nothing but a directory."""

from __future__ import annotations

from pathlib import Path

from appliance.flows.desk import Desk
from appliance.flows.home import Home, HomeConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger


def bare_home(directory: Path) -> Home:
    """A home at a directory, without anything in it."""
    return Home(directory, HomeConfig(schema="appliance.home/1", origin="x"))


def desk_at(ledger: Ledger, actor: Actor, directory: Path = Path("/nowhere")) -> Desk:
    """A desk at an open ledger."""
    return Desk(bare_home(directory), ledger, actor)
