"""Run by Alembic for every command: it works on the connection and the transaction that the caller has opened."""

from __future__ import annotations

from alembic import context

from monitor.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,  # SQLite can, as long as the driver does not commit by itself
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
