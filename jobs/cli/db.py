"""`db upgrade`: the database's schema becomes this version's. PostgreSQL needs it; SQLite does it by itself."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look after the database.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Look after the database."""


@app.command()
def upgrade() -> None:
    """Bring the schema up to this version.

    A PostgreSQL database is changed by this command alone, once, while no worker runs; an SQLite file needs no command.
    """
    from jobs.settings import Settings
    from jobs.store import Store

    typer.echo(Store.migrate(Settings.load()))
