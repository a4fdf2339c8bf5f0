"""Claim the best shard, run it, commit, again, until nothing is left: the whole life of a worker.

A ring, a poll and a start all mean the same: look. A claim that leaves more pending rings once more. Between shards the
drain reaps what dead workers left behind and writes manifests that fell behind. A job that cannot be had here is left
to others for a while; a fault of the machine itself (disk, results folder) pauses everything. A database that is away
is waited for, and what was claimed when it went is handed back when it answers again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from jobs.doorbell import Doorbell
from jobs.errors import JobNotFound, ResultsError, StoreError
from jobs.manifest import ensure_manifest
from jobs.processes import this_process
from jobs.reaper import Reaper
from jobs.records import Claim
from jobs.settings import Settings
from jobs.store import Store
from worker.attempt import Attempt
from worker.bell import Bell
from worker.device import shown
from worker.engine import Engine
from worker.faults import DeviceLost, MachineFault, WorkerFault
from worker.logs import logging_for
from worker.metrics import LEASE_EXPIRIES
from worker.rewards import Rewarder
from worker.stop import Stop
from worker.turns import Turns
from worker.vitals import Vitals

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 15.0, 600.0  # seconds that something which failed here is left alone, doubling
_RING_PATIENCE = 0.2  # seconds that a shard waits for a ring to be taken
_DATABASE_PATIENCE = 600.0  # seconds that a worker which leaves when idle waits for a database that is away


@dataclass(slots=True)
class _Pause:
    """Why something is left alone, and until when (monotonic)."""

    reason: str
    seconds: float = _FIRST_PAUSE
    until: float = field(init=False)

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.seconds

    def again(self, reason: str) -> _Pause:
        return _Pause(reason, min(2 * self.seconds, _LONGEST_PAUSE))

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until


@dataclass(slots=True)
class Drain:
    """One worker's loop over the shards of its queues."""

    store: Store
    settings: Settings
    engine: Engine
    worker_id: str
    queues: Sequence[str]
    stop: Stop
    bell: Bell = field(default_factory=Bell)
    reaper: Reaper = field(init=False)
    turns: Turns = field(init=False)
    doorbell: Doorbell = field(init=False)
    vitals: Vitals = field(init=False)
    rewarder: Rewarder = field(default_factory=Rewarder)
    _shunned: dict[str, _Pause] = field(default_factory=dict)  # jobs that cannot be run here
    _paused: _Pause | None = None  # nothing can be run here
    _unrung: str | None = None  # why the last ring failed
    _idle: bool = False  # in its row, as far as it was told: whoever leaves something to be claimed rings for it
    _shown: dict[str, Any] = field(default_factory=dict)  # of this worker in its row, besides what it works on
    _astray: bool = False  # the database went away with a claim of ours in an unknown state
    _looked: float = 0.0  # when the shards of others were last looked after (monotonic)

    def __post_init__(self) -> None:
        settings = self.settings
        self.reaper = Reaper(self.store, settings.lease_seconds, settings.max_failures, root=settings.results)
        self.turns = Turns(settings.age_limit_seconds)
        self.doorbell = Doorbell(self.store, self.settings, patience=_RING_PATIENCE)
        self.vitals = Vitals(lambda: self.engine.device)

    def register(self) -> None:
        """Enter this process among the workers."""
        device = shown(self.engine.device)
        self.store.register_worker(self.worker_id, this_process(), queues=self.queues, device=device)

    def until_stopped(self) -> None:
        """Work and watch until `stop` is set. Raises DeviceLost."""
        while not self.stop.is_set():
            self._patiently()
            self.bell.wait(self.stop, self.settings.poll_seconds, self._claimable)

    def until_idle(self) -> str | None:
        """Work until no shard of the queues is pending or running anywhere.

        Returns None then, or when stopped; else why what is left cannot be done by this worker. Raises StoreError if
        the database stays away, DeviceLost.
        """
        away_since: float | None = None
        while not self.stop.is_set():
            failure = self._patiently()
            if failure is not None:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _DATABASE_PATIENCE:
                    raise failure
            else:
                away_since = None
                if not self.store.unfinished_exists(self.queues):
                    return None
                if (why := self._cannot()) is not None:
                    return why
            self.bell.wait(self.stop, self.settings.poll_seconds, self._claimable)
        return None

    def once(self) -> int:
        """Run shards until no claim succeeds; returns how many were run."""
        with self.vitals.at_work(), closing(self.rewarder):
            return self._once()

    def _once(self) -> int:
        if self._astray:
            self.store.hand_back_all(self.worker_id, "the database was away")
            self._astray = False
        ran, told = 0, False
        while not self.stop.is_set():
            idle = self._idle
            claim = self._claim()  # before anything else: somebody may have rung for it
            if claim is not None:
                self._run(claim)
                self.vitals.moved()
                ran, told = ran + 1, False
                self._look_now_and_then()
                continue
            if not told:
                told = True
                self._tell(job_id=None, shard=None, tokens_per_second=None)
                if not idle:
                    continue  # idle in its row before it looks for the last time: whoever comes after rings for it
            if not self._look():
                break
        self._tidy()
        return ran

    def _patiently(self) -> StoreError | None:
        """`once`, and the failure if the database did not answer."""
        try:
            self.once()
        except StoreError as failure:
            self._astray = True
            log.error("%s; looking again", failure)
            return failure
        return None

    def _look_now_and_then(self) -> None:
        """Look, from a drain that has other things to do: often enough to see a lease end in time."""
        if time.monotonic() - self._looked >= max(self.settings.heartbeat_seconds, self.settings.lease_seconds / 8):
            self._look()

    def _look(self) -> int:
        """Look after the shards of other workers; how many were taken back."""
        expired = self.reaper.look()
        LEASE_EXPIRIES.inc(expired)
        self._looked = time.monotonic()
        return expired

    def _tell(self, **doing: Any) -> None:
        """Show people that this worker lives, how it is, and what it is doing."""
        self._idle = False
        self._shown = self._state()
        told = {**self._shown, **self.vitals.memory, **doing}
        if not self.store.worker_beat(self.worker_id, **told):
            self.register()  # its row was lost
            self.store.worker_beat(self.worker_id, **told)
        self._idle = told["job_id"] is None and told["paused"] is None

    def _state(self) -> dict[str, Any]:
        loaded = self.engine.loaded
        device = shown(self.engine.device)
        return {"model": loaded[0] if loaded else None, "device": device, "paused": self._why_paused()}

    def _claim(self) -> Claim | None:
        if self._resting:
            return None
        return self.store.claim(
            self.worker_id,
            queues=self.queues,
            model=self.engine.loaded,
            age_limit=self.turns.age_limit,
            served=self.turns.served,
            exclude=self._excluded(),
        )

    def _claimable(self) -> bool:
        """Is there a shard that a claim would take now?"""
        return not self._resting and self.store.pending_exists(self.queues, exclude=self._excluded())

    @property
    def _resting(self) -> bool:
        return self._paused is not None and not self._paused.over

    def _excluded(self) -> list[str]:
        return [job_id for job_id, pause in self._shunned.items() if not pause.over]

    def _ring(self, claim: Claim) -> None:
        """Wake one more worker if this claim left something for it."""
        why = self.doorbell.ring(claim.job.queue, min(1, claim.job.pending_shards))
        if why is not None and why != self._unrung:
            log.warning("workers were not rung (%s); they find the shards at their next look", why)
        self._unrung = why

    def _run(self, claim: Claim) -> None:
        job_id = claim.job.id
        self._idle = False  # the claim has told
        self._ring(claim)
        if not claim.known or self._state() != self._shown:
            self._tell(job_id=job_id, shard=claim.shard.index)
        try:
            with self.turns.serving(claim), logging_for(job_id, claim.shard.index, claim.shard.attempt):
                Attempt(
                    self.store,
                    self.settings,
                    self.engine,
                    claim,
                    self.stop,
                    self.vitals,
                    self._look_now_and_then,
                    self.rewarder,
                ).run()
            self._shunned.pop(job_id, None)
            self._paused = None
        except DeviceLost:
            raise
        except MachineFault as fault:
            self._paused = self._paused.again(str(fault)) if self._paused else _Pause(str(fault))
        except WorkerFault as fault:
            before = self._shunned.get(job_id)
            self._shunned[job_id] = before.again(str(fault)) if before else _Pause(str(fault))
        self._manifest(job_id)

    def _why_paused(self) -> str | None:
        """Why this worker leaves something alone just now, if it does."""
        if self._paused is not None and self._resting:
            return self._paused.reason
        shunned = [f"job {job_id}: {pause.reason}" for job_id, pause in self._shunned.items() if not pause.over]
        return "; ".join(shunned) or None

    def _cannot(self) -> str | None:
        """Why nothing that is left to claim can be done here, if that is so."""
        if self._paused is not None:
            return self._paused.reason
        if not self._shunned or self.store.pending_exists(self.queues, exclude=list(self._shunned)):
            return None
        reasons = [f"job {job_id}: {pause.reason}" for job_id, pause in self._shunned.items() if self._waits(job_id)]
        return "; ".join(reasons) or None

    def _waits(self, job_id: str) -> bool:
        try:
            return self.store.job(job_id).pending_shards > 0
        except JobNotFound:
            return False

    def _tidy(self) -> None:
        for job_id in self.store.jobs_with_old_manifest():
            self._manifest(job_id)
            self.vitals.moved()

    def _manifest(self, job_id: str) -> None:
        """Bring the job's manifest up to date if it has ended; what is wrong with one job is no harm to the others."""
        try:
            ensure_manifest(self.store, self.settings, job_id)
        except JobNotFound:
            pass
        except ResultsError as error:
            log.error("no manifest for job %s: %s", job_id, error)
