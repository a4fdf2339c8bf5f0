"""What every route works with: the settings, the jobs of their database, reached when first needed, and their views.

A server starts, and says so, while its database is away.
"""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from jobs import Client, JobHandle
from jobs.errors import StoreError
from jobs.intake import Intake
from jobs.paths import JobPaths
from jobs.settings import Settings
from jobs.store import Store
from jobs.summaries import Summaries
from webui.caller import Caller
from webui.polled import Views


class Site:
    """One server's view of one database and results folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.views = Views()
        self.summaries = Summaries()
        self.streams = 0  # answers under way that go on for as long as a job; counted on the event loop
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._intake: Intake | None = None

    @property
    def client(self) -> Client:
        """Raises StoreError while the database does not answer or its schema is not ours."""
        with self._lock:
            if self._client is None:
                self._client = Client(self.settings)
            return self._client

    @property
    def intake(self) -> Intake:
        """What takes in prompts that come as a stream. Raises StoreError as `client`."""
        store = self.store
        with self._lock:
            if self._intake is None:
                self._intake = Intake(store, self.settings)
            return self._intake

    @property
    def store(self) -> Store:
        """Raises StoreError as `client`."""
        return self.client.store

    def steered(self, job: str, caller: Caller) -> JobHandle:
        """A job that the caller is about to change. Raises JobNotFound; HTTPException, 403, if it is another's."""
        handle = self.client.get(job)
        caller.check_may_steer(handle.record)
        return handle

    def paths(self, job_id: str) -> JobPaths:
        """Where the files of a job lie."""
        return JobPaths(self.settings.results, job_id)

    def check(self) -> None:
        """Ask the database now. Raises StoreError."""
        have, want = self.store.schema_version()
        if have != want:
            raise StoreError(f"{self.store.url} has schema {have} now, and this version needs {want}")


async def _site(connection: HTTPConnection) -> Site:  # async: not worth a thread
    site: Site = connection.app.state.site
    return site


TheSite = Annotated[Site, Depends(_site)]
"""A route's parameter of this type is the site."""
