"""One attempt at one shard: from the claim to the commit, and whose fault it is when it does not get there.

Order of a success: rows computed, files closed, fsynced and renamed, rows judged likewise, then one transaction. A file
that the commit did not take is deleted only when the database says that no row names it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, wait_exponential

from jobs.errors import ResultsError, StoreError
from jobs.paths import JobPaths
from jobs.records import Claim, ShardResult
from jobs.rewards.judge import Judged
from jobs.settings import Settings
from jobs.shard_files import write_attempt
from jobs.snapshot import SnapshotRow, read_rows
from jobs.store import Store
from worker.engine import Engine, ShardRows
from worker.faults import JobFault, MachineFault, SpecFault, WorkerFault
from worker.heartbeat import Heartbeat, LeaseLost, ShardStopped
from worker.metrics import SHARDS, timed
from worker.resample import run_in_rounds
from worker.rewards import Rewarder
from worker.stop import Stop
from worker.vitals import Vitals

log = logging.getLogger(__name__)

_COMMIT_PATIENCE = 300.0  # seconds that a finished shard waits for a database that is away
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)


@dataclass(slots=True)
class Attempt:
    """Runs one claim. `run` returns normally whatever the shard's own fate.

    WorkerFault and MachineFault pass, after the shard was handed back without a failure. StoreError passes too: then
    nothing could be written of the shard's fate, and whoever called hands it back when the database answers again.
    """

    store: Store
    settings: Settings
    engine: Engine
    claim: Claim
    stop: Stop
    vitals: Vitals
    look: Callable[[], object]  # after the shards of other workers, now and then
    rewarder: Rewarder

    @property
    def paths(self) -> JobPaths:
        return JobPaths(self.settings.results, self.claim.job.id)

    def run(self) -> None:
        shard = self.claim.shard
        seconds = self.settings.heartbeat_seconds
        with timed(), Heartbeat(self.store, self.claim, seconds, self.stop, self.vitals, self.look) as heartbeat:
            try:
                self._work(heartbeat)
            except LeaseLost:
                self._lost()
            except ShardStopped as stopped:
                reason = type(stopped).__name__.lower()
                SHARDS.labels("handed back").inc()
                log.info("shard %d handed back: %s", shard.index, reason)
                self.store.hand_back(self.claim, reason)
            except JobFault as error:
                SHARDS.labels("failed").inc()
                log.error("the job cannot run: %s", error)
                self.store.fail_job(self.claim, str(error))
            except (WorkerFault, MachineFault) as fault:
                self._own_fault(fault)
                raise
            except StoreError:
                raise
            except Exception as error:
                machine = _of_the_machine(error)
                if machine is None:
                    self._failed(error)
                elif self._own_fault(machine):
                    raise machine from error
                else:
                    self._lost()

    def _work(self, heartbeat: Heartbeat) -> None:
        job = self.claim.job
        with heartbeat.deaf():
            identity = self._prepare()
        pinned = job.identity if job.identity == identity else self.store.pin_identity(self.claim, identity)
        if pinned != identity:
            differs = ", ".join(sorted(k for k in pinned.keys() | identity.keys() if pinned.get(k) != identity.get(k)))
            raise WorkerFault(f"{job.model} here is not what the job began with: other {differs}; bring the same files")

        def judge(name: str, file: Path, rows: int) -> Judged | None:
            return self.rewarder.judge(name, file, rows, lambda: heartbeat.step(0, 0))

        made = run_in_rounds(self.engine, job, self._prompts(), heartbeat.step, judge)
        heartbeat.check()
        self._commit(made, heartbeat)

    def _prepare(self) -> dict[str, str]:
        try:
            return self.engine.prepare(self.claim.job)
        except SpecFault:
            raise
        except JobFault as fault:
            if self.store.job(self.claim.job.id).identity is None:
                raise
            raise WorkerFault(f"another worker could load what this one cannot: {fault}") from fault

    def _prompts(self) -> list[SnapshotRow]:
        shard = self.claim.shard
        try:
            return read_rows(self.paths, shard.segment, shard.start, shard.stop)
        except ResultsError as error:
            if self.paths.segment(shard.segment).is_file():
                raise ValueError(str(error)) from error  # damaged for every worker: the shard's own fault
            raise

    def _commit(self, made: ShardRows, heartbeat: Heartbeat) -> None:
        shard = self.claim.shard
        self.vitals.moved()
        result = write_attempt(self.paths, shard, made.rows, made.errors, self.engine.details())
        result = self._rewarded(result, made, heartbeat)
        patience = Retrying(
            retry=retry_if_exception_type(StoreError),
            stop=lambda state: self.stop.is_set() or (state.seconds_since_start or 0) > _COMMIT_PATIENCE,
            wait=wait_exponential(max=10),
            sleep=self.stop.wait,
            before=lambda _state: self.vitals.moved(),  # waiting for a database is not hanging
            reraise=True,
        )
        if patience(self.store.commit, self.claim, result):
            SHARDS.labels("done").inc()
            log.info("shard %d done: %d sequences, %d tokens", shard.index, result.sequences, result.tokens)
            return
        SHARDS.labels("lost").inc()
        log.warning("shard %d attempt %d came too late; its files are removed", shard.index, shard.attempt)
        if not self.store.names_file(self.claim.job.id, shard.index, result.file):
            self._remove(result)

    def _rewarded(self, result: ShardResult, made: ShardRows, heartbeat: Heartbeat) -> ShardResult:
        """With the rewards that the job asks for; whatever keeps the shard from going on removes its files."""
        names = self.claim.job.spec.get("rewards") or ()
        try:
            for sidecar in self.rewarder.sidecars(
                names, self.paths, self.claim.shard, result, lambda: heartbeat.step(0, 0), made.measured
            ):
                result = replace(result, sidecars=(*result.sidecars, sidecar))
        except BaseException:
            self._remove(result)
            raise
        return result

    def _remove(self, result: ShardResult) -> None:
        """Files that no row names, nor can any more."""
        for name in filter(None, (result.file, result.errors_file, *(sidecar.file for sidecar in result.sidecars))):
            self.paths.resolve(name).unlink(missing_ok=True)

    def _own_fault(self, fault: Exception) -> bool:
        """Hand the shard back. False if it was lost before: then gc may have taken its files, which is no fault."""
        handed_back = self.store.hand_back(self.claim, str(fault), notice=True)
        if handed_back:
            SHARDS.labels("handed back").inc()
            log.error("shard %d handed back, by this worker's fault: %s", self.claim.shard.index, fault)
        return handed_back

    def _lost(self) -> None:
        SHARDS.labels("lost").inc()
        log.warning("shard %d is not attempt %d's any more", self.claim.shard.index, self.claim.shard.attempt)

    def _failed(self, error: Exception) -> None:
        shard = self.claim.shard
        SHARDS.labels("failed").inc()
        log.exception("shard %d attempt %d failed", shard.index, shard.attempt)
        sentence = f"{type(error).__name__}: {error}"
        state = self.store.fail(self.claim, sentence, limit=self.settings.max_failures)
        log.info("shard %d is now %s", shard.index, state)


def _of_the_machine(error: Exception) -> MachineFault | None:
    """The fault of the machine that this error stands for, if it is one."""
    if isinstance(error, ResultsError):
        return MachineFault(str(error))
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return MachineFault(f"{error.strerror}: {error.filename or 'no file named'}")
    return None
