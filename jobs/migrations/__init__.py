"""Alembic's history of the schema. `versions/` is append-only: a released revision never changes."""
