"""Alembic's entry: runs the migrations on the connection that `Database.upgrade` passes."""

from alembic import context

from tunewright.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
