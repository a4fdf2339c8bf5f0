"""Random sequences of operations against a model of the job in plain Python, which knows only JOBS.md's rules.

The model keeps a list of shards and a state; it never counts anything up. Whatever the store does that the model
would not, or the other way round, fails; so do a counter that is not its sum, an edge that is not in the table, and an
attempt that falls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from jobs.errors import WrongState
from jobs.records import Claim, ShardResult
from jobs.states import JOB_EDGES, SHARD_EDGES
from jobs.store import Store
from tests.contract.helpers import check, result, submit, try_claim

LIMIT = 2
SHARDS = 3
STEPS = 60


@dataclass
class ModelShard:
    state: str = "pending"
    attempt: int = 0
    failures: int = 0
    file: str | None = None


@dataclass
class ModelJob:
    sealed: bool
    state: str = "queued"
    own_error: bool = False
    shards: list[ModelShard] = field(default_factory=lambda: [ModelShard() for _ in range(SHARDS)])

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")

    def holds(self, claim: Claim) -> ModelShard | None:
        shard = self.shards[claim.shard.index]
        return shard if shard.state == "running" and shard.attempt == claim.shard.attempt else None

    def claim(self) -> int | None:
        if self.ended or self.state == "cancelling":
            return None
        for index, shard in enumerate(self.shards):
            if shard.state == "pending":
                shard.state, self.state = "running", "running"
                shard.attempt += 1
                return index
        return None

    def commit(self, claim: Claim, made: ShardResult) -> bool:
        shard = self.holds(claim)
        if shard is None:
            return self.shards[claim.shard.index].file == made.file
        shard.state, shard.file = "done", made.file
        self.settle()
        return True

    def give_up(self, claim: Claim, failures: int) -> None:
        if shard := self.holds(claim):
            shard.failures += failures
            failed = failures and shard.failures >= LIMIT
            shard.state = "cancelled" if self.state == "cancelling" else "failed" if failed else "pending"
            self.settle()

    def cancel(self) -> None:
        for shard in self.shards:
            shard.state = "cancelled" if shard.state == "pending" else shard.state
        self.sealed = True
        if any(s.state == "running" for s in self.shards):
            self.state = "cancelling"
        self.settle()

    def fail(self) -> None:
        for shard in self.shards:
            shard.state = "failed" if shard.state in ("pending", "running") else shard.state
        self.sealed, self.state = True, "failed"

    def retry(self, failed_only: bool) -> bool:
        again = [s for s in self.shards if s.state == "failed" or (s.state == "cancelled" and not failed_only)]
        for shard in again:
            shard.state, shard.failures = "pending", 0
        if again:
            self.state = "queued"
        return bool(again)

    def settle(self) -> None:
        states = {shard.state for shard in self.shards}
        if self.sealed and not states & {"pending", "running"}:
            self.state = next((s for s in ("failed", "cancelled") if s in states), "succeeded")


class Walk:
    """One job and its model, walked side by side."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.random = store, random.Random(seed)
        sealed = self.random.random() < 0.7
        self.model = ModelJob(sealed)
        self.id = submit(store, SHARDS, sealed=sealed, queue=f"q{seed}").id
        self.queue = f"q{seed}"
        self.claims: list[Claim] = []  # every claim there ever was: most of them are zombies
        self.results: dict[tuple[int, int], ShardResult] = {}

    def step(self) -> str:
        acts = [self.claim] * 4 + [self.commit] * 4 + [self.fail] * 2 + [self.hand_back] * 2 + [self.reap] * 2
        acts += [self.cancel, self.fail_job, self.retry, self.retry, self.seal, self.beat]
        act = self.random.choice(acts)
        act()
        return act.__name__

    def claim(self) -> None:
        claimed = try_claim(self.store, queues=[self.queue])
        index = self.model.claim()
        assert (claimed and claimed.shard.index) == index
        if claimed:
            self.claims.append(claimed)

    def one(self) -> Claim | None:
        """A claim, more often a recent one."""
        pool = self.claims[-2:] if self.random.random() < 0.7 else self.claims
        return self.random.choice(pool) if pool else None

    def commit(self) -> None:
        if claimed := self.one():
            made = self.results.setdefault(claimed.key[1:], result(self.random.randrange(50)))
            assert self.store.commit(claimed, made) == self.model.commit(claimed, made)

    def fail(self) -> None:
        if claimed := self.one():
            state = self.store.fail(claimed, "boom", limit=LIMIT)
            self.model.give_up(claimed, 1)
            assert state == self.model.shards[claimed.shard.index].state

    def hand_back(self) -> None:
        if claimed := self.one():
            self.store.hand_back(claimed, "stopping")
            self.model.give_up(claimed, 0)

    def reap(self) -> None:
        if claimed := self.one():
            beat = self.store.shard(self.id, claimed.shard.index).beat
            held = self.model.holds(claimed) is not None
            assert self.store.reap(*claimed.key, beat=beat, reason="silent", limit=LIMIT) == held
            self.model.give_up(claimed, 1)

    def beat(self) -> None:
        if claimed := self.one():
            beat = self.store.beat(claimed, sequences=1, tokens=1)
            assert beat.lost == (self.model.holds(claimed) is None)
            assert beat.cancel == (self.model.state == "cancelling")

    def cancel(self) -> None:
        if self.model.state in ("succeeded", "failed"):
            with pytest.raises(WrongState):
                self.store.cancel(self.id)
            return
        if self.model.state != "cancelled":
            self.model.cancel()
        assert self.store.cancel(self.id).state == self.model.state

    def fail_job(self) -> None:
        if claimed := self.one():
            held = self.model.holds(claimed) is not None
            assert self.store.fail_job(claimed, "no such model") == held
            if held:
                self.model.fail()

    def retry(self) -> None:
        failed_only = self.random.random() < 0.5
        if self.model.ended and self.model.retry(failed_only):
            self.store.retry(self.id, failed_only=failed_only)
        else:
            with pytest.raises(WrongState):
                self.store.retry(self.id, failed_only=failed_only)

    def seal(self) -> None:
        self.store.seal(self.id)
        if not self.model.sealed:
            self.model.sealed = True
            self.model.settle()


@pytest.mark.parametrize("seed", range(6))
def test_the_store_does_what_the_rules_say(store: Store, seed: int) -> None:
    walk = Walk(store, seed)
    job, shards = store.job(walk.id), store.shards(walk.id)
    for step in range(STEPS):
        did = walk.step()
        where = f"seed {seed}, step {step}: {did}"
        before, job = job, check(store, walk.id)
        then, shards = shards, store.shards(walk.id)
        assert (job.state, [s.state for s in shards]) == (walk.model.state, [s.state for s in walk.model.shards]), where
        model = [(s.attempt, s.failures, s.file) for s in walk.model.shards]
        assert [(s.attempt, s.failures, s.file) for s in shards] == model, where
        assert job.revision >= before.revision, where
        assert job.state == before.state or _edges(before.state, job.state), where
        for old, new in zip(then, shards, strict=True):
            assert new.attempt >= old.attempt, where
            assert new.state == old.state or (old.state, new.state) in SHARD_EDGES, where


def _edges(source: str, target: str) -> bool:
    return (source, target) in JOB_EDGES
