"""Whose shard is next: what an owner may count on, whatever the others submit.

Hours pass by making rows older; a cluster is played shard by shard against the real store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy import update

from jobs.records import Claim, Job
from jobs.states import JobState
from jobs.store import Store
from jobs.store.schema import jobs
from tests.contract.helpers import age, claim, result, submit, try_claim
from worker.turns import Turns

LIMIT = 600.0  # seconds without service that make a job aged
MODEL = ("org/model", None)


def pass_time(store: Store, seconds: float) -> None:
    """Make all that waits older."""
    with store.db.transaction() as connection:
        older = {name: jobs.c[name] - seconds for name in ("waiting_since", "created_at")}
        connection.execute(update(jobs).where(jobs.c.ended_at.is_(None)).values(**older))


@dataclass
class Player:
    """A worker of the cluster: what it remembers, has loaded, and runs until when."""

    name: str
    turns: Turns
    loaded: tuple[str, str | None] | None = None
    claim: Claim | None = None
    until: float = 0.0
    serving: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True)
class Served:
    """One claim."""

    at: float
    owner: str
    job: str
    worker: str
    seconds: float


class Cluster:
    """Workers that take `shard` seconds for a shard, and `load` more for one of another base, on a clock of its own."""

    def __init__(self, store: Store, workers: int = 1, *, shard: float = 30.0, load: float = 0.0) -> None:
        self.store, self.shard, self.load = store, shard, load
        self.now = 0.0
        self.served: list[Served] = []
        self.workers = [Player(f"w{i}", Turns(LIMIT, lambda: self.now)) for i in range(workers)]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (player := min(self.workers, key=lambda w: w.until)).until < end:
            pass_time(self.store, player.until - self.now)
            self.now = player.until
            self._next(player)
        pass_time(self.store, end - self.now)
        self.now = end

    def _next(self, player: Player) -> None:
        if player.claim is not None:
            player.serving.close()
            assert self.store.commit(player.claim, result())
        options = {"model": player.loaded, "age_limit": player.turns.age_limit, "served": player.turns.served}
        player.claim = mine = try_claim(self.store, player.name, **options)
        if mine is None:
            player.until = self.now + 1.0
            return
        other = player.loaded is None or player.loaded[0] != mine.job.model
        seconds = self.shard + (self.load if other else 0.0)
        player.loaded = (mine.job.model, mine.job.adapter)
        player.until = self.now + seconds
        player.serving.enter_context(player.turns.serving(mine))
        self.served.append(Served(self.now, mine.job.owner, mine.job.id, player.name, seconds))

    def between(self, arrived: float, job: Job) -> list[Served]:
        """What others got from a job's arrival to its last claim."""
        last = max(i for i, served in enumerate(self.served) if served.job == job.id)
        return [served for served in self.served[:last] if served.at >= arrived and served.job != job.id]


def longest_wait(served: Sequence[Served], job: Job, end: float) -> float:
    """The longest time from 0 to `end` without a claim of the job."""
    times = [0.0, *(s.at for s in served if s.job == job.id), end]
    return max(b - a for a, b in pairwise(times))


# --- age ------------------------------------------------------------------------------------------------------------


def test_of_aged_jobs_the_longest_waiting_goes_first_whatever_else_speaks_for_others(store: Store) -> None:
    submit(store, 1, owner="ada", queue="gpu")
    claim(store, queues=["gpu"])  # so that ada's share is the larger one
    other = submit(store, 9, owner="ada", model="org/other")
    urgent = submit(store, 1, owner="bob", priority=9)
    submit(store, 1, owner="cyd", priority=9)
    for job, seconds in ((other, 900), (urgent, 800)):
        age(store, job.id, seconds)
    taken = [claim(store, model=MODEL) for _ in range(3)]
    assert [(mine.job.owner, mine.aged) for mine in taken] == [("ada", True), ("bob", True), ("cyd", False)]


def test_an_aged_job_that_was_served_once_goes_back_in_line(store: Store) -> None:
    low = submit(store, 9, owner="ada", priority=-1)
    high = submit(store, 9, owner="bob")
    age(store, low.id, 700)
    first = claim(store)
    assert first.job.id == low.id
    assert store.commit(first, result())
    assert claim(store).job.id == high.id


def test_a_job_that_is_being_served_is_not_aged_however_long_its_shard_takes(store: Store) -> None:
    low = submit(store, 9, owner="ada", priority=-1)
    claim(store)
    pass_time(store, 10 * LIMIT)
    high = submit(store, 9, owner="bob")
    assert claim(store).job.id == high.id
    assert store.job(low.id).running_shards == 1


def test_a_worker_that_can_run_nothing_of_a_job_has_not_served_it(store: Store) -> None:
    low = submit(store, 9, owner="ada", priority=-1)
    submit(store, 9, owner="bob")
    age(store, low.id, 700)
    for _ in range(3):
        store.hand_back(claim(store), "no network")
        taken = claim(store)
        assert (taken.job.id, taken.aged) == (low.id, True)
        store.hand_back(taken, "no network")
    store.fail(claim(store), "boom", limit=3)  # its own fault: as good as served
    assert claim(store).job.owner == "bob"


def test_no_job_is_aged_without_a_limit(store: Store) -> None:
    low = submit(store, 9, owner="ada", priority=-1)
    high = submit(store, 9, owner="bob")
    age(store, low.id, 10_000)
    taken = claim(store, age_limit=None)
    assert (taken.job.id, taken.aged) == (high.id, False)


# --- affinity -------------------------------------------------------------------------------------------------------


def test_affinity_prefers_the_base_in_memory_and_on_it_the_adapter(store: Store) -> None:
    submit(store, owner="ada", model="org/other")
    submit(store, owner="bob", model="org/model", adapter="org/second")
    submit(store, owner="cyd", model="org/model", adapter="org/first")
    order = [claim(store, model=("org/model", "org/first")).job.owner for _ in range(3)]
    assert order == ["cyd", "bob", "ada"]


def test_an_owners_turn_goes_before_the_adapter_but_not_before_the_base(store: Store) -> None:
    """Another adapter is put over a base in no time; another base may take minutes."""
    submit(store, 9, owner="ada", adapter="org/first")
    submit(store, 9, owner="bob", model="org/other")
    submit(store, 9, owner="cyd", adapter="org/second")
    loaded = ("org/model", "org/first")
    assert claim(store, model=loaded, served=["ada"]).job.owner == "cyd"


def test_work_for_the_loaded_model_never_starves_another(store: Store) -> None:
    """A stream of jobs for one model, every one of them old, and one job for another model."""
    cluster = Cluster(store, load=60.0)
    for _ in range(25):
        submit(store, 1, owner="ada")
    other = submit(store, 3, owner="bob", model="org/other")
    pass_time(store, 2 * LIMIT)
    cluster.run(2 * LIMIT)
    assert [s.job for s in cluster.served].count(other.id) == 3
    assert longest_wait(cluster.served, other, cluster.now) <= 2 * LIMIT


def test_models_change_seldom_though_everything_is_old(store: Store) -> None:
    """Six jobs, each with a model of its own that loads slower than a shard runs, and none served within the limit."""
    cluster = Cluster(store, shard=60.0, load=90.0)
    submitted = [submit(store, 99, owner=f"o{i}", model=f"org/m{i}") for i in range(6)]
    pass_time(store, 2 * LIMIT)
    cluster.run(6_000)
    loading = sum(served.seconds - cluster.shard for served in cluster.served)
    assert loading <= 0.35 * cluster.now, "half of it, with a load for every shard, is 60 %"
    for job in submitted:
        assert longest_wait(cluster.served, job, cluster.now) <= LIMIT + 6 * (150 + 150 + 60)


# --- shares and turns -----------------------------------------------------------------------------------------------


def test_an_owners_share_counts_in_every_queue(store: Store) -> None:
    submit(store, owner="ada", queue="gpu")
    claim(store, queues=["gpu"])
    submit(store, 9, owner="ada")
    bobs = submit(store, 9, owner="bob")
    assert claim(store).job.id == bobs.id


def test_several_workers_share_one_job(store: Store) -> None:
    job = submit(store, 40)
    cluster = Cluster(store, 4)
    cluster.run(40 / 4 * cluster.shard + 1)
    assert store.job(job.id).state is JobState.SUCCEEDED
    assert Counter(served.worker for served in cluster.served) == {f"w{i}": 10 for i in range(4)}


def test_a_huge_job_holds_no_other_owners_small_one(store: Store) -> None:
    """Four workers; small jobs of other owners come in while the huge one runs."""
    cluster = Cluster(store, 4)
    huge = submit(store, 1_000, owner="ada")
    cluster.run(100)
    small = []
    for n in range(8):
        small.append((cluster.now, submit(store, 2, owner=f"o{n % 3}")))
        cluster.run(100)
    for arrived, job in small:
        assert store.job(job.id).state is JobState.SUCCEEDED
        assert len(cluster.between(arrived, job)) <= 2
    got = Counter(served.owner for served in cluster.served)
    assert got["ada"] == len(cluster.served) - 2 * len(small), "the huge job gets all that nobody else needs"
    assert store.job(huge.id).running_shards == 4


def test_one_worker_serves_owners_in_turn(store: Store) -> None:
    """Then no shard of anyone runs at a claim, and shares say nothing."""
    cluster = Cluster(store)
    submit(store, 99, owner="ada")
    cluster.run(300)
    arrived = cluster.now
    small = submit(store, 3, owner="bob")
    submit(store, 99, owner="cyd")
    cluster.run(600)
    assert len(cluster.between(arrived, small)) <= 2 * 3
    late = Counter(served.owner for served in cluster.served if served.at >= arrived)
    assert late["bob"] == 3
    assert abs(late["ada"] - late["cyd"]) <= 1


def test_a_stream_of_small_jobs_does_not_starve_a_long_one(store: Store) -> None:
    cluster = Cluster(store)
    submit(store, 99, owner="ada")
    for _ in range(30):
        submit(store, 1, owner="bob")
    cluster.run(20 * cluster.shard)
    assert Counter(served.owner for served in cluster.served) == {"ada": 10, "bob": 10}


def test_ones_own_small_job_goes_before_ones_own_huge_one(store: Store) -> None:
    submit(store, 99)
    claim(store)
    small = submit(store, 2)
    assert [claim(store).job.id for _ in range(2)] == [small.id] * 2


def test_equal_jobs_of_one_owner_are_made_one_after_the_other(store: Store) -> None:
    """The first results of a sweep come early; with its jobs in turns all of them would come at the end."""
    sweep = [submit(store, 4).id for _ in range(3)]
    cluster = Cluster(store, 2)
    cluster.run(6 * cluster.shard)
    assert [served.job for served in cluster.served] == [job for job in sweep for _ in range(4)]


# --- priority -------------------------------------------------------------------------------------------------------


def test_priorities_count_though_everything_is_old(store: Store) -> None:
    """A backlog of hours, none of it served within the limit, and then something urgent."""
    cluster = Cluster(store, 2)
    backlog = [submit(store, 99, owner=f"o{n}") for n in range(12)]
    pass_time(store, 3 * LIMIT)
    cluster.run(90)
    urgent = submit(store, 99, owner="eve", priority=5)
    start = len(cluster.served)
    cluster.run(40 * cluster.shard)
    window = cluster.served[start:]
    assert [served.job for served in window].count(urgent.id) >= len(window) // 2
    waits = [longest_wait(cluster.served, job, cluster.now) for job in backlog]
    assert max(waits) <= LIMIT + 12 * cluster.shard, "and nobody starves of it"
