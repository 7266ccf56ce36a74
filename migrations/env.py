"""Alembic's entry: runs the revisions on the connection that the program hands over, in its transaction.

Rules for a revision: expand only. Never `batch_alter_table` on a table of the ledger: on SQLite it rebuilds the table
and silently drops its triggers. A revision that adds a table adds its guards for both databases, and on PostgreSQL its
grants to `roles.application`, which the program hands over where another role owns the tables. A revision that was
released is never changed: the ledger states the digest of every definition.
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
