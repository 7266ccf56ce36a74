"""Running the Alembic migrations from inside the program; users need neither `alembic` nor an ini file."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

import appliance
from appliance.errors import ArtefactMissing
from appliance.ledger.dialect import Roles


def upgrade(connection: Connection, roles: Roles, revision: str = "head") -> None:
    """Bring the database to a revision, the newest by default, inside the caller's transaction.

    Args:
      connection: the transaction, of the tables' owner.
      roles: who is granted rights on the tables.
      revision: which one.
    """
    from alembic import command  # a third of a second to import, and needed once in a ledger's life
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["roles"] = roles
    command.upgrade(config, revision)


def _directory() -> Path:
    package = Path(appliance.__file__).resolve().parent
    for candidate in (package / "_migrations", package.parent / "migrations"):
        if candidate.is_dir():
            return candidate
    raise ArtefactMissing("the migrations of the ledger's database are not installed", where=str(package))
