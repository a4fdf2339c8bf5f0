"""Jobs from Python: submit, wait, and read what came out, in the vocabulary of the command line.

from jobs import Client
client = Client()                                    # this machine's; Client("http://host:8642", token=…): a server's
job = client.submit(model="tiny-arithmetic", prompts=["What is 2 + 3?"], G=8, seed=42)
job.wait()
sequences, logprobs = job.to_batched()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self

from jobs.access import Access
from jobs.errors import SpecError, UsageError
from jobs.feed import Feed
from jobs.handle import JobHandle
from jobs.local import Local
from jobs.presence import WorkerStatus
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store
from jobs.submit import Plan

__all__ = ["Client", "JobHandle"]


class Client:
    """The jobs of one database and results folder: this machine's, or a server's over HTTP.

    `Client()` and `Client(settings)` open what the settings name (by default what is embedded here);
    `Client("http://host:8642", token=…)` asks the web server there, and offers the same.
    """

    def __init__(self, where: Settings | str | None = None, *, token: str | None = None) -> None:
        """Raises StoreError if the database does not answer, UsageError for an address that is none."""
        if isinstance(where, str):
            from jobs.remote import Remote

            self._access: Access = Remote(where, token)
            return
        if token is not None:
            raise UsageError("a token is for a server: give its address, as in Client('http://host:8642', token=…)")
        self._access = Local(where or Settings.load())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._access.close()

    @property
    def settings(self) -> Settings:
        """The settings that this machine's jobs are opened by. Raises UsageError for a server's."""
        return self._local.settings

    @property
    def store(self) -> Store:
        """The database of this machine's jobs. Raises UsageError for a server's."""
        return self._local.store

    @property
    def _local(self) -> Local:
        if not isinstance(self._access, Local):
            raise UsageError("this client asks a server, and has no database of its own; Client() opens this machine's")
        return self._access

    def submit(
        self,
        spec: JobSpec | None = None,
        *,
        prompts: Iterable[Any] | None = None,
        stdin: BinaryIO | None = None,
        on_prompt: Callable[[int], None] | None = None,
        **fields: Any,
    ) -> JobHandle:
        """Submit a job: a JobSpec, or its fields; `prompts` may be any iterable and is streamed.

        Raises SpecError with a line for each thing wrong, before anything is stored.
        """
        spec, prompts = self._spec(spec, prompts, fields)
        done = self._access.submit(spec, prompts=prompts, stdin=stdin, on_prompt=on_prompt)
        return JobHandle.of(self._access, done)

    def plan(
        self,
        spec: JobSpec | None = None,
        *,
        prompts: Iterable[Any] | None = None,
        stdin: BinaryIO | None = None,
        **fields: Any,
    ) -> Plan:
        """Check all that submit checks and count; nothing is stored."""
        spec, prompts = self._spec(spec, prompts, fields)
        return self._access.plan(spec, prompts=prompts, stdin=stdin)

    def feed(self, spec: JobSpec | None = None, **fields: Any) -> Feed:
        """Open a job that gets its prompts one by one, while workers are at those that it has:

            with client.feed(model="tiny-arithmetic", G=8) as feed:
                for prompt in whatever_makes_them():
                    feed.add(prompt)

        What it gets for a bad prompt is a prompt error, not a refusal. Raises SpecError for the rest of the spec; an
        idempotency key cannot be given.
        """
        spec, _ = self._spec(spec, None, fields)
        opened = self._access.open(spec)
        return Feed(self._access, JobHandle(self._access, opened.job))

    def get(self, job: str) -> JobHandle:
        """The job with this id, a prefix that only it has, or its name. Raises JobNotFound."""
        return JobHandle(self._access, self._access.job(job))

    def reaper(self) -> Reaper:
        """Takes shards back from dead workers: anyone alive on this machine may look."""
        return self._local.reaper()

    def jobs(self, **filters: Any) -> list[JobHandle]:
        """Jobs, newest first; filters as `Store.jobs` takes them."""
        return [JobHandle(self._access, record) for record in self._access.jobs(**filters)]

    def workers(self) -> list[WorkerStatus]:
        """The workers that have not left, oldest first, and how each is."""
        return self._access.workers()

    def _spec(
        self, spec: JobSpec | None, prompts: Iterable[Any] | None, fields: dict[str, Any]
    ) -> tuple[JobSpec, Iterable[Any] | None]:
        if spec is not None:
            if fields:
                raise UsageError(f"give a JobSpec or its fields, not both: {', '.join(fields)}")
            return spec, prompts
        if isinstance(prompts, str | bytes | Mapping) or hasattr(prompts, "columns"):
            kind = type(prompts).__name__
            raise SpecError(
                [f"prompts: is a {kind}; give a list of prompts, as to_dict('records') makes of a DataFrame"]
            )
        return self._access.parse(fields), prompts
