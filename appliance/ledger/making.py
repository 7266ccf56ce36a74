"""Making a ledger's tables and its first entries, and bringing those of an older release up to this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from appliance.errors import UsageError
from appliance.events.ledger import LedgerUpgraded
from appliance.ledger import schema, stated
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database, roles
from appliance.ledger.dialect import Roles
from appliance.ledger.keyring import Keys, first_keys, leaves_about_keys
from appliance.ledger.log import Appender, Context, read_head


@contextmanager
def owner(config: LedgerConfig, database: Database) -> Iterator[Database]:
    """Open the database as the role that owns its tables; the one that is open where there is no other role."""
    if not config.owner_url:
        yield database
        return
    owned = Database(config.owner_url, writable=True)
    try:
        yield owned
    finally:
        owned.close()


def begin(connection: Connection, config: LedgerConfig, keys: Keys, context: Context) -> None:
    """Migrate and write the first entries; in an interrupted creation either may have been done.

    Raises:
      UsageError: the database holds another ledger.
    """
    from appliance.ledger.migration import upgrade as migrate

    migrate(connection, _roles(config))
    if read_head(connection).size:
        if first_keys(leaves_about_keys(connection)[0]) != keys:
            raise UsageError("the database holds another ledger", hint="name an empty one")
        return
    appender = Appender(connection, context)
    for event in stated.first_events(config, keys, schema.schema_digests(connection)):
        appender.append(event)
    appender.flush()


def upgrade(connection: Connection, config: LedgerConfig, context: Context) -> None:
    """Bring an older database to this revision, in one transaction with the entry that says so."""
    from appliance.ledger.migration import upgrade as migrate

    if schema.revision_of(stated.read_definitions(connection)) == schema.REVISION:  # another process was faster
        return
    migrate(connection, _roles(config))
    appender = Appender(connection, context)
    appender.append(LedgerUpgraded(revision=schema.REVISION, definitions=schema.schema_digests(connection)))
    appender.flush()


def _roles(config: LedgerConfig) -> Roles:
    return roles(config.url, config.eraser_url) if config.owner_url else Roles()
