"""How Alembic runs here: inside the transaction of `jobs.store.migrate`, whose connection it is handed."""

from alembic import context

from jobs.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # true of SQLite as well: our transactions begin with BEGIN, not by the driver's guess
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
