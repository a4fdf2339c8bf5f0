"""The store: all that is known about jobs, and every way to change it. All SQL of the project is in this package.

Each method is one transaction of its own, safe to call from any thread or process.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

from sqlalchemy import select, update

from jobs.settings import Settings
from jobs.store import migrate as migration
from jobs.store.changes import Changes
from jobs.store.claims import Claims
from jobs.store.creation import Creation
from jobs.store.database import Database
from jobs.store.feeding import Feeding
from jobs.store.lifecycle import Lifecycle
from jobs.store.listing import Listing
from jobs.store.queries import Queries
from jobs.store.schema import REVISION, jobs
from jobs.store.schema import store as store_table
from jobs.store.sidecars import Sidecars
from jobs.store.webhooks import Webhooks
from jobs.store.workers import Workers


class Store(Creation, Feeding, Claims, Lifecycle, Queries, Listing, Sidecars, Webhooks, Workers):
    """One database. Methods raise StoreError, in a sentence, when it does not answer."""

    def __init__(self, db: Database) -> None:
        self.db = db

    @classmethod
    def open(cls, settings: Settings, *, migrate: bool = True) -> Self:
        """Connect to the settings' database and make sure of its schema.

        An SQLite file is made and migrated here unless `migrate` is False; PostgreSQL only ever by `Store.migrate`.
        Raises StoreError if the database cannot be reached, or its schema is not the one that this version speaks.
        """
        db = Database(settings.database)
        if migrate and db.file:
            migration.migrate(db)
        else:
            migration.check(db)
        return cls(db)

    @staticmethod
    def migrate(settings: Settings) -> str:
        """Bring the settings' database to this version's schema; a sentence saying what was done."""
        db = Database(settings.database)
        try:
            return migration.migrate(db)
        finally:
            db.close()

    def close(self) -> None:
        self.db.close()

    @property
    def url(self) -> str:
        """The database's URL without its password."""
        return self.db.url

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.db.dialect

    @cached_property
    def store_id(self) -> str:
        """A uuid made by the first migration."""
        return self.root_id().partition("/")[0]

    def root_id(self) -> str:
        """What the results root must bear: the store's id and, once `take_root` took one, `/` and that root's own."""
        with self.db.reading() as connection:
            return str(connection.execute(select(store_table.c.id)).scalar_one())

    def changes(self) -> Changes | None:
        """What tells cheaply whether anything was written; None for a database that cannot."""
        return Changes(self.db.file) if self.db.file else None

    def take_root(self, root_id: str) -> str:
        """Make the root with this id the results root, for good; returns the id that now stands.

        That is another if a root was taken before, or if jobs of an older version already lie in one.
        """
        with self.db.transaction() as connection:
            known = str(connection.execute(select(store_table.c.id).with_for_update()).scalar_one())
            if "/" in known or connection.scalar(select(jobs.c.id).limit(1)) is not None:
                return known
            connection.execute(update(store_table).values(id=root_id))
            return root_id

    def schema_version(self) -> tuple[str | None, str]:
        """(the database's schema, the one that this version speaks)."""
        return migration.schema_version(self.db), REVISION
