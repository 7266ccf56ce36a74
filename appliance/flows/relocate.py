"""`ledger relocate`: say in the ledger that database, anchor or epoch keys lie elsewhere from now on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ArtefactMissing, UsageError
from appliance.events.home import HomeConfigured
from appliance.files import make_directory, write_atomic
from appliance.flows.desk import Desk
from appliance.flows.home import Home, HomeConfig, Operator, anchor_file
from appliance.ledger.ledger import Ledger
from appliance.values import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where parts of a home lie from now on; None leaves one where `home.json` says it is."""

    database_url: str | None = None
    anchor_dir: Path | None = None
    epoch_keys: Path | None = None


def relocate(home: Home, operator: Operator, move: Move) -> HomeConfigured:
    """Open the ledger at its new places, write `home.json` and then the entry that says so.

    Between the two nothing else opens the ledger; doing it again ends what was interrupted. The database and the epoch
    keys were moved by whoever moved them; the anchor is copied.

    Returns:
      What the entry says.

    Raises:
      UsageError: the store is unsealed, or another file lies at a new place.
      ArtefactMissing: a part is not at its new place.
      IntegrityError: the database there is not the ledger of this anchor.
    """
    if home.agent().status().state == "unsealed":
        raise UsageError("the key agent serves the places with which it was unlocked", hint="appliance key lock")
    moved = Home(home.root, _configure(home, move))
    _bring_anchor(home.anchor, moved.anchor)
    if not any(moved.epoch_keys.glob("epoch-*.json")):
        raise ArtefactMissing("there are no epoch keys", where=str(moved.epoch_keys))
    with Ledger.open(dataclasses.replace(moved.ledger_config(), configuration=None)) as ledger:
        write_atomic(moved.root / "home.json", to_json(moved.config))
        desk = Desk(moved, ledger, moved.actor(operator), operator.reason)
        desk.record(moved.configuration)
    return moved.configuration


def _configure(home: Home, move: Move) -> HomeConfig:
    changes: dict[str, str] = {}
    if move.database_url is not None:
        changes["database_url"] = move.database_url
    if move.anchor_dir is not None:
        changes["anchor"] = str(anchor_file(move.anchor_dir, home.config.origin, home.root))
    if move.epoch_keys is not None:
        changes["epoch_keys"] = str(move.epoch_keys.absolute())
    return home.config.model_copy(update=changes)


def _bring_anchor(old: Path, new: Path) -> None:
    """Copy the anchor to its new place, unless it was moved there already."""
    if old == new or (new.exists() and not old.exists()):
        return
    if not old.exists():
        raise ArtefactMissing("the ledger's anchor is missing", where=str(old))
    if new.exists() and new.read_bytes() != old.read_bytes():
        raise UsageError(f"{new} is another anchor", hint="name another directory")
    make_directory(new.parent)
    write_atomic(new, old.read_bytes())
