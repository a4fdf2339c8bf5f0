"""Jobs to be looked at, one in each state a person may find one in.

The finished one was made by the model; what the others made was written down, so that each stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.client import JobHandle
from jobs.processes import this_process
from tests.browser.site import Site
from tests.cli.conftest import do_shard, row

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"' \u202egnp.exe\u202c \x1b[31m {{ 7*7 }}"


@dataclass(frozen=True)
class Gallery:
    """A site and the ids of its jobs: finished, flawed, failed, cancelled, running, queued."""

    site: Site
    jobs: dict[str, str]


def hang(site: Site) -> Gallery:
    """Fill a site without jobs."""
    makers = (finished, flawed, failed, cancelled, running, queued)  # each claims what it submitted: the only one there
    return Gallery(site, {make.__name__: make(site).id for make in makers})


def submit(site: Site, prompts: list[str], **fields: Any) -> JobHandle:
    """A job of shards of two prompts, two samples each."""
    fields = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2} | fields
    return site.client.submit(prompts=prompts, **fields)


def finished(site: Site) -> JobHandle:
    job = site.client.submit(
        model="tiny-arithmetic",
        dataset="arithmetic_r1_template",
        split="test",
        num_prompts=24,
        G=8,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=128,
        seed=42,
        shard_size=6,
        name="arithmetic, first look",
        labels={"run": "baseline", "step": "0"},
    )
    job.wait()
    return job


def flawed(site: Site) -> JobHandle:
    """Succeeded, though one prompt could not be done; every text in it is hostile."""
    job = submit(site, [HOSTILE, "2+2=", HOSTILE * 20], name=HOSTILE, labels={"<b>run</b>": HOSTILE})
    rows = [row(p, g, prompt=HOSTILE, response=HOSTILE, token_ends=[2, len(HOSTILE)]) for p in (0, 1) for g in (0, 1)]
    do_shard(site.client, job.id, rows)
    error = {"prompt_index": 2, "sample_index": None, "custom_id": "2", "error": f"the prompt is too long: {HOSTILE}"}
    do_shard(site.client, job.id, [], [error])
    return job


def failed(site: Site) -> JobHandle:
    job = submit(site, ["1+1="], model="org/no-such-model", name="no such model")
    claim = site.client.store.claim("test-worker", queues=["default"], model=None, age_limit=600)
    assert claim is not None and claim.job.id == job.id
    site.client.store.fail_job(claim, "org/no-such-model cannot be loaded: no model of that name on the hub")
    return job


def cancelled(site: Site) -> JobHandle:
    job = submit(site, [f"{n}+1=" for n in range(8)], name="stopped half-way", labels={"run": "sweep"})
    for first in (0, 2):
        do_shard(site.client, job.id, [row(p, g) for p in (first, first + 1) for g in (0, 1)])
    job.cancel()
    return job


def running(site: Site) -> JobHandle:
    """Its worker is this very process, which lives: nobody takes its shard back."""
    job = submit(site, [f"{n}+3=" for n in range(20)], name="sweep, temperature 1.0", labels={"run": "sweep"})
    for first in (0, 2, 4):
        do_shard(site.client, job.id, [row(p, g) for p in (first, first + 1) for g in (0, 1)])
    store = site.client.store
    for worker, queues in (("trainer-0a1b2c3d", ["default"]), ("trainer-4e5f6a7b", ["default", "urgent"])):
        store.register_worker(worker, this_process(), queues=queues, device="NVIDIA H100 80GB HBM3")
    claim = store.claim("trainer-0a1b2c3d", queues=["default"], model=None, age_limit=600)
    assert claim is not None and claim.job.id == job.id
    store.beat(claim, sequences=1, tokens=2)
    store.worker_beat(
        "trainer-0a1b2c3d",
        job_id=job.id,
        shard=claim.shard.index,
        model="tiny-arithmetic",
        tokens_per_second=1.5,
        memory_used=61 << 30,
        memory_total=80 << 30,
    )
    return job


def queued(site: Site) -> JobHandle:
    return submit(site, ["5+5="] * 4, name="waits for its turn", queue="urgent", priority=10)
