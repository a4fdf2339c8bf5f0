"""Faults of all kinds at random over several jobs and workers, and then the calm in which everything must come right.

The seed decides what happens in which order; the machine decides what it meets. Whatever begins also ends: a fault
that lasts puts its end on a list that the same loop works off. What people do (submit, cancel, retry, gc) happens in
threads, for it may have to wait for a database that only this loop brings back.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from jobs.client import JobHandle
from jobs.errors import JobNotFound, ResultsError, StoreError, WrongState
from jobs.gc import ORPHAN_AGE, collect
from jobs.settings import Settings
from tests.faults.outages.disk import SmallDisk
from tests.faults.outages.puppet import POISON
from tests.faults.outages.site import (
    LEASE,
    PATIENCE,
    SUBMIT,
    Process,
    Reference,
    Site,
    assert_intact,
    wrong_by,
)

_MOST_WORKERS = 4
_JOB_EVERY = 3.0  # seconds, so that what is submitted can also be done
_LONGEST = 2 * LEASE  # seconds that a fault lasts at most
_USUAL_START = 2.0  # seconds from nothing to a first claim; where it takes longer, faults come more slowly as well,
_SLOWEST = 4.0  # up to so many times


class Chaos:
    """One run over one site. `run`, then `settle`, then `check`; `story` tells what happened.

    Each lane is a subclass, which adds the faults of what its site stands on.
    """

    def __init__(self, site: Site, seed: int, *, disk: SmallDisk | None = None) -> None:
        self.site, self.random, self.seed, self.disk = site, random.Random(seed), seed, disk
        self.began = time.monotonic()
        self.timeline: list[str] = []
        self.happened: Counter[str] = Counter()
        self.workers: list[Process] = []
        self.told: Counter[int] = Counter()  # how often a worker was told to leave, by its pid
        self.clocks: dict[int, Path] = {}
        self.prompts: dict[str, list[str]] = {}  # by the job's name, which is also its seed
        self.ends: list[tuple[float, int, Callable[[], Any]]] = []
        self.numbers = itertools.count(1)
        self.people = ThreadPoolExecutor(8)
        self.deeds: list[tuple[str, Future[Any]]] = []
        self.done_amid = 0  # shards that were done before the calm

    # What may happen, and how often.

    def faults(self) -> dict[Callable[[], None], int]:
        usual = {
            self.kill_a_worker: 4,
            self.freeze_a_worker: 4,
            self.terminate_a_worker: 2,
            self.start_a_worker: 6,
            self.set_a_clock: 2,
            self.submit: 6,
            self.submit_twice: 2,
            self.kill_a_submit: 2,
            self.cancel: 2,
            self.retry: 4,
            self.collect: 3,
            **self.lane_faults(),
        }
        if self.disk is not None:
            usual[self.fill_the_disk] = 2
        return usual

    def lane_faults(self) -> dict[Callable[[], None], int]:
        """Those of the lane."""
        raise NotImplementedError

    def worker_settings(self) -> Settings:
        """The site's, as a worker of this lane has them."""
        return self.site.settings

    def run(self, seconds: float) -> None:
        faults = self.faults()
        for _ in range(2):
            self.submit()
            self.start_a_worker()
        self.site.until(lambda: any(job.record.started_at for job in self._jobs()))  # the first worker is there
        pace = min(max(1.0, (time.monotonic() - self.began) / _USUAL_START), _SLOWEST)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._end_what_is_due()
            fault = self.random.choices(list(faults), list(faults.values()))[0]
            fault()
            time.sleep(pace * self.random.uniform(0.02, 0.4))

    def settle(self) -> None:
        """No more faults; what was cancelled or failed is retried until every job has succeeded."""
        self._end_what_is_due(all_of_them=True)
        self.done_amid = sum(job.record.done_shards for job in self._jobs())
        self._tell("calm", how=f"with {self.done_amid} shards done")
        for _ in range(2):
            self._start()
        for what, deed in self.deeds:
            self._judge(what, deed)
        self._age_orphans()
        self.site.until(self._all_succeeded)
        self.site.until(lambda: not self.site.store.jobs_with_old_manifest())

    def check(self, reference: Reference) -> None:
        """Every job is whole, and no process said anything that its people should not have to read."""
        for worker in self._alive():
            self._tell_to_leave(worker)
        for worker in self.workers:
            code, said = worker.wait(PATIENCE), worker.said()
            told, why = self.told[worker.pid], said.splitlines()[-1:]
            explained = bool(why) and why[0].startswith("Error: ")
            # 1: it could not start. 143: told twice. SIGTERM itself: Python's first and last moments do not listen.
            assert code in (0, 1, 143, -signal.SIGKILL, -signal.SIGTERM), f"a worker ended with {code}"
            assert code != 1 or explained, said
            assert code != -signal.SIGTERM or explained or not said or told > 1, said
        for process in self.site.processes:
            assert "Traceback" not in process.said(), process.said()
        collect(self.site.store, self.site.settings)
        for job in self._jobs():
            name = str(job.record.name)
            expected = reference.of(self.prompts[name], name=name, seed=int(name))
            assert job.record.state == "succeeded"
            assert_intact(self.site, job, expected)

    def close(self) -> None:
        """Whatever went wrong, the server is there again for others."""
        self._end_what_is_due(all_of_them=True)
        self.people.shutdown(wait=False, cancel_futures=True)

    def story(self) -> str:
        return "\n".join([f"seed {self.seed}", *self.timeline, self.site.last_words()])

    def summary(self) -> str:
        attempts = Counter(a.outcome for job in self._jobs() for a in self.site.store.attempts(job.id))
        made = (
            f"{len(self.prompts)} submits, {len(self._jobs())} jobs whole, {self.done_amid} shards done before the calm"
        )
        return f"seed {self.seed}: {made}; attempts {dict(attempts)}; {dict(self.happened)}"

    # Workers.

    def start_a_worker(self) -> None:
        if len(self._alive()) < _MOST_WORKERS:
            self._start()
            if self.random.random() < 0.3:
                self._start()  # a supervisor that starts the same thing twice

    def kill_a_worker(self) -> None:
        for worker in self._some_worker():
            worker.kill()
            self._tell("kill -9", worker)

    def terminate_a_worker(self) -> None:
        for worker in self._some_worker():
            self._tell_to_leave(worker)

    def freeze_a_worker(self) -> None:
        for worker in self._some_worker():
            worker.suspend()
            self._lasts("SIGSTOP", worker.resume, worker)

    def set_a_clock(self) -> None:
        for worker in self._some_worker():
            hours = self.random.randint(-50, 50)
            wrong_by(self.clocks[worker.pid], hours * 3600.0)
            self._tell("clock set", worker, f"by {hours} h")

    # People.

    def submit(self) -> None:
        if (name := self._new_job()) is not None:
            self._do("submit", partial(self._submit, name), name)

    def submit_twice(self) -> None:
        """Two at once under one idempotency key: one job."""
        if (name := self._new_job()) is not None:
            for _ in range(2):
                self._do("submit under a key", partial(self._submit, name, idempotency_key=f"key-{name}"), name)

    def kill_a_submit(self) -> None:
        if (name := self._new_job()) is not None:
            flags = [item for prompt in self.prompts[name] for item in ("--prompts", prompt)]
            process = self.site.command("submit", "-d", "-q", *SUBMIT, "--seed", name, "--name", name, *flags)
            self._lasts("submit, killed", process.kill, name, seconds=self.random.uniform(0.3, 1.5))

    def cancel(self) -> None:
        self._steer("cancel", lambda job: job.cancel())

    def retry(self) -> None:
        self._steer("retry", lambda job: job.retry())

    def collect(self) -> None:
        self._do("gc", lambda: collect(self.site.store, self.site.settings))

    # What all depend on.

    def fill_the_disk(self) -> None:
        assert self.disk is not None
        self.disk.fill()
        self._lasts("disk full", self.disk.make_room)

    # How it is done.

    def _start(self) -> None:
        clock = self.site.folder / f"clock-{next(self.numbers)}"
        wrong_by(clock, 0)
        worker = self.site.worker(
            step=self.random.choice((0.0, 0.01, 0.05)), clock=clock, settings=self.worker_settings()
        )
        self.clocks[worker.pid] = clock
        self.workers.append(worker)
        self._tell("start", worker)

    def _tell_to_leave(self, worker: Process) -> None:
        worker.terminate()
        self.told[worker.pid] += 1
        self._tell("SIGTERM", worker)

    def _alive(self) -> list[Process]:
        return [worker for worker in self.workers if worker.poll() is None]

    def _some_worker(self) -> list[Process]:
        """One that has already worked, most of the time: on a loaded machine it takes long to start. Or none."""
        alive = self._alive()
        among = [worker for worker in alive if worker.said()] if self.random.random() < 0.8 else alive
        return [self.random.choice(among)] if among else []

    def _new_job(self) -> str | None:
        """The name of one more job, whose prompts are drawn; none if there are enough."""
        if len(self.prompts) > 2 + (time.monotonic() - self.began) / _JOB_EVERY:
            return None
        name = str(1000 + next(self.numbers))
        count = self.random.randint(1, 30)
        self.prompts[name] = [POISON if self.random.random() < 0.1 else f"prompt {i}" for i in range(count)]
        return name

    def _submit(self, name: str, **fields: Any) -> None:
        self.site.submit(self.prompts[name], name=name, seed=int(name), **fields)

    def _steer(self, what: str, deed: Callable[[JobHandle], Any]) -> None:
        draw = self.random.random()

        def steer() -> None:
            jobs = self._jobs()
            if jobs:
                deed(jobs[int(draw * len(jobs))])

        self._do(what, steer)

    def _do(self, what: str, deed: Callable[[], Any], about: str = "") -> None:
        self._tell(what, about)
        self.deeds.append((f"{what} {about}", self.people.submit(deed)))

    def _judge(self, what: str, deed: Future[Any]) -> None:
        """People may be told why not, in a sentence; anything else is a bug."""
        error = deed.exception(60)
        if error is not None:
            self.timeline.append(f"        {what}: {type(error).__name__}: {error}")
            assert isinstance(error, WrongState | JobNotFound | StoreError | ResultsError), f"{what}: {error!r}"

    def _lasts(
        self, what: str, end: Callable[[], Any], about: str | Process = "", seconds: float | None = None
    ) -> None:
        seconds = self.random.uniform(0.1, _LONGEST) if seconds is None else seconds
        self._tell(what, about, f"for {seconds:.1f} s")
        heapq.heappush(self.ends, (time.monotonic() + seconds, next(self.numbers), end))

    def _end_what_is_due(self, *, all_of_them: bool = False) -> None:
        while self.ends and (all_of_them or self.ends[0][0] <= time.monotonic()):
            heapq.heappop(self.ends)[2]()

    def _jobs(self) -> list[JobHandle]:
        return self.site.client.jobs(limit=10_000)

    def _all_succeeded(self) -> bool:
        jobs = self._jobs()
        for job in jobs:
            if job.record.state in ("failed", "cancelled"):
                job.retry()
        return all(job.record.state == "succeeded" for job in jobs)

    def _age_orphans(self) -> None:
        """Folders of submits that were killed are as old as gc asks for."""
        known = self.site.store.job_ids()
        for folder in (self.site.settings.results / "jobs").iterdir():
            if folder.name not in known:
                for path in (*folder.rglob("*"), folder):
                    os.utime(path, (0, time.time() - ORPHAN_AGE - 60))

    def _tell(self, what: str, about: str | Process = "", how: str = "") -> None:
        self.happened[what] += 1
        whom = f"worker {about.pid}" if isinstance(about, Process) else about
        self.timeline.append(f"{time.monotonic() - self.began:8.2f}  {what} {whom} {how}".rstrip())
