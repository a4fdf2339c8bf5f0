"""`make bench-queue`: the job system's own costs, next to bare Celery and to the core called directly, in one run.

Each measurement runs in a fresh process, one after the other; workers are real processes and so are the servers. A
table with the bars and what was measured, the plans of a claim, and as the last line of stdout one JSON object with
everything. Exit code 1 only if an output is wrong: never for a speed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import crowd, latency, throughput
from benchmarks.run import Run
from benchmarks.table import Figure, Row, console, drawn, finish, parsed


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    samples: int = 300  # of a latency
    claimers: tuple[int, ...] = (1, 4, 16)
    claim_seconds: float = 4.0
    crowd: tuple[int, int] = (100_000, 1_000_000)  # pending and finished shards
    pairs: int = 5
    shards: int = 20
    shard_prompts: int = 64
    max_new_tokens: int = 64
    workers: tuple[int, ...] = (1, 2, 4)
    sleeping_shards: int = 40
    shard_seconds: float = 0.5
    small_jobs: int = 1_000


FEW = "a few shards"  # what a quick run is on
QUICK = Sizes(3, (1, 2), 0.2, (1_000, 2_000), 1, 2, 2, 4, (1, 2), 4, 0.05, 20)


class Session(Run[Sizes]):
    """What the rows are figures of."""

    def latency(self, lane: str) -> dict[str, float]:
        return self.measure(f"latency, {lane}", latency.ours, self.sizes.samples, lanes=lane)

    def bare_latency(self) -> dict[str, float]:
        return self.measure("latency, bare", latency.bare, self.servers.redis(), self.sizes.samples)

    def claims(self, lane: str) -> dict[str, Any]:
        options = {"workers": self.sizes.claimers, "seconds": self.sizes.claim_seconds, "crowd": self.sizes.crowd}
        return self.measure(f"claims, {lane}", crowd.rates, lanes=f"{lane} {lane}", **options)

    def overhead(self, lane: str) -> dict[str, Any]:
        from benchmarks import system  # not above: it loads torch, and every process here imports this module

        names = ("pairs", "shards", "shard_prompts", "max_new_tokens")
        options = {name: getattr(self.sizes, name) for name in names}
        return self.measure(f"overhead, {lane}", system.overhead, lanes=lane, **options)

    def scaling(self, lane: str) -> dict[str, Any]:
        options = {"shards": self.sizes.sleeping_shards, "shard_seconds": self.sizes.shard_seconds, "lanes": lane}
        return self.measure(f"scaling, {lane}", throughput.scaling, self.sizes.workers, **options)

    def small_jobs(self, lane: str) -> dict[str, Any]:
        return self.measure(f"small jobs, {lane}", throughput.small_jobs, self.sizes.small_jobs, lanes=lane)

    def bare_tasks(self) -> dict[str, Any]:
        return self.measure("tasks, bare", throughput.bare_tasks, self.servers.redis(), self.sizes.small_jobs)


def against_bare(quantile: str) -> Callable[[Session], Figure]:
    """Latency over Redis and PostgreSQL, of bare Celery's on the same Redis."""

    def of(session: Session) -> Figure:
        bare, ours = session.bare_latency(), session.latency("redis")
        return Figure(ours[quantile] / bare[quantile], f"{ours[quantile]:.1f} ms against {bare[quantile]:.1f} ms")

    return of


def embedded_latency(session: Session) -> Figure:
    ours = session.latency("sqlite")
    return Figure(ours["p99"], f"p50 {ours['p50']:.1f} ms, largest {ours['max']:.1f} ms")


def flatness(lane: str) -> Callable[[Session], Figure]:
    """Milliseconds of a claim with its commit by one worker in a crowd, of those in tables with little else."""

    def of(session: Session) -> Figure:
        report = session.claims(lane)
        took, alone = report["median_ms"]["crowd"], report["median_ms"]["without"]
        per_second = " / ".join(f"{rate:,.0f}" for rate in report["per_second"].values())
        by = " / ".join(map(str, session.sizes.claimers))
        return Figure(took / alone, f"{took:.2f} ms against {alone:.2f} ms; {per_second} per second by {by} workers")

    return of


def overhead(lane: str) -> Callable[[Session], Figure]:
    """What the job system adds to the core, shard by shard."""

    def of(session: Session) -> Figure:
        report = session.overhead(lane)
        each = ", ".join(f"{run['percent']:.1f}" for run in report["runs"])
        core, outside, longer = (
            median(r[name] for r in report["runs"]) for name in ("core_s", "outside_ms", "longer_ms")
        )
        a_shard = f"a shard: {outside:.0f} ms outside of the engine, {longer:.0f} in it"
        return Figure(report["percent"], f"{each}; {report['shards']} shards, {core:.1f} s of the core; {a_shard}")

    return of


def speedup(lane: str, place: int) -> Callable[[Session], Figure]:
    """Wall time of one job by one worker, over that by several."""

    def of(session: Session) -> Figure:
        report, count = session.scaling(lane), session.sizes.workers[place]
        alone, seconds = report["seconds"][session.sizes.workers[0]], report["seconds"][count]
        asleep = report["shards"] * report["shard_seconds"]
        return Figure(alone / seconds, f"{alone:.2f} s to {seconds:.2f} s by {count}; asleep {asleep:.1f} s in all")

    return of


def small_jobs(lane: str) -> Callable[[Session], Figure]:
    def of(session: Session) -> Figure:
        report, bare = session.small_jobs(lane), session.bare_tasks()["per_second"]
        submits = report["submits_per_second"]
        return Figure(report["per_second"], f"{submits:,.0f} submits per second; bare Celery: {bare:,.0f} tasks")

    return of


def growth(lane: str) -> Callable[[Session], Figure]:
    """Memory that a worker took between the first fifth of the small jobs and the last."""

    def of(session: Session) -> Figure:
        report = session.small_jobs(lane)
        return Figure(report["growth_mib"], f"{report['resident_mib']:.0f} MiB after {report['jobs']:,} jobs")

    return of


ROWS: dict[str, Row] = {
    "redis-p50": Row("submit → claim, Redis ÷ bare Celery, p50", 1.5, False, "x", against_bare("p50")),
    "redis-p99": Row("submit → claim, Redis ÷ bare Celery, p99", 1.5, False, "x", against_bare("p99")),
    "sqlite-p99": Row("submit → claim, embedded SQLite, p99", 100, False, "ms", embedded_latency),
    "claims-sqlite": Row("claim + commit in a crowd ÷ without, SQLite", 1.25, False, "x", flatness("sqlite")),
    "claims-postgresql": Row(
        "claim + commit in a crowd ÷ without, PostgreSQL", 1.25, False, "x", flatness("postgresql")
    ),
    "overhead-sqlite": Row("job system over the core, SQLite", 2, False, "%", overhead("sqlite")),
    "overhead-postgresql": Row("job system over the core, PostgreSQL", 2, False, "%", overhead("postgresql")),
    "two-sqlite": Row("2 workers, SQLite", 1.9, True, "x", speedup("sqlite", 1)),
    "four-sqlite": Row("4 workers, SQLite", 3.6, True, "x", speedup("sqlite", -1)),
    "two-redis": Row("2 workers, Redis", 1.9, True, "x", speedup("redis", 1)),
    "four-redis": Row("4 workers, Redis", 3.6, True, "x", speedup("redis", -1)),
    "small-sqlite": Row("small jobs by one worker, SQLite", None, True, "per s", small_jobs("sqlite")),
    "small-redis": Row("small jobs by one worker, Redis", None, True, "per s", small_jobs("redis")),
    "memory-sqlite": Row("its memory's growth, SQLite", 4, False, "MiB", growth("sqlite")),
    "memory-redis": Row("its memory's growth, Redis", 4, False, "MiB", growth("redis")),
}


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments, "benchmarks.queue", __doc__, ROWS, FEW)
    session = Session(QUICK if options.quick else Sizes())
    report = session.report(ROWS, options.only, options.quick)
    about, out = report["machine"], console()
    out.print(drawn(f"Jobs and their queue; {about['cpu']}, {about['cores']} cores", ROWS, report["rows"]))
    for name, measured in report["measured"].items():
        for plan in measured.get("plans", ()):
            out.print(f"\n{name}:\n{plan}", markup=False, highlight=False)
    return finish(report, FEW)


if __name__ == "__main__":
    sys.exit(main())
