"""What a worker remembers between claims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import Client, local
from jobs.records import Claim
from jobs.settings import Settings
from jobs.store import Store
from tests.clock import Clock
from tests.unit.worker.test_drain import FixedEngine
from worker.drain import Drain
from worker.stop import Stop
from worker.turns import Turns


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    with Client(Settings(home=tmp_path / "home")) as made:
        made.submit(model="tiny-arithmetic", prompts=["a"])
        claimed = made.store.claim("w", queues=["default"], model=None, age_limit=600)
        assert claimed is not None
        yield claimed


def serve(turns: Turns, clock: Clock, claim: Claim, seconds: float, *, owner: str = "ada", aged: bool = False) -> None:
    with turns.serving(replace(claim, job=replace(claim.job, owner=owner), aged=aged)):
        clock.now += seconds


def test_age_rests_for_as_long_as_an_aged_shard_took(claim: Claim) -> None:
    clock = Clock()
    turns = Turns(600.0, clock)
    assert turns.age_limit == 600.0
    serve(turns, clock, claim, 50)
    assert turns.age_limit == 600.0
    serve(turns, clock, claim, 70, aged=True)
    assert turns.age_limit is None
    serve(turns, clock, claim, 69)
    assert turns.age_limit is None
    serve(turns, clock, claim, 1)
    assert turns.age_limit == 600.0


def test_owners_are_remembered_latest_last_also_when_the_shard_failed(claim: Claim) -> None:
    clock = Clock()
    turns = Turns(600.0, clock)
    for owner in ("ada", "bob", "cyd", "ada"):
        with suppress(ValueError):
            serve(turns, clock, claim, 1, owner=owner)
            raise ValueError
    assert turns.served == ["bob", "cyd", "ada"]
    for n in range(100):
        serve(turns, clock, claim, 1, owner=f"o{n}")
    assert turns.served[-2:] == ["o98", "o99"]
    assert len(turns.served) < 50, "a claim names them all"


def test_a_drain_serves_owners_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home")
    order = []
    really = Store.claim

    def claim(self: Store, *args: object, **options: object) -> Claim | None:
        claimed = really(self, *args, **options)  # type: ignore[arg-type]
        order.extend([claimed.job.owner] if claimed else [])
        return claimed

    monkeypatch.setattr(Store, "claim", claim)
    with Client(settings) as made:
        for owner, shards in (("ada", 4), ("bob", 2)):
            monkeypatch.setattr(local, "current_owner", lambda owner=owner: owner)
            made.submit(model="tiny-arithmetic", prompts=["a"] * shards, shard_size=1)
        Drain(made.store, settings, FixedEngine(), "w", ["default"], Stop()).once()
    assert order == ["bob", "ada", "bob", "ada", "ada", "ada"]
