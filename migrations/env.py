"""Alembic's entry: runs the revisions on the connection that the program hands over, in its transaction.

Rules for a revision: expand only. Never `batch_alter_table` on a table of the ledger: on SQLite it rebuilds the table
and silently drops its triggers.
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
