"""Groups that are rewarded alike are sampled anew: held against whole jobs under each round's seed, picked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import Client
from jobs.client import JobHandle
from jobs.errors import SpecError
from jobs.manifest import verify
from jobs.settings import Settings
from jobs.spec import JobSpec
from worker.drain import Drain
from worker.engine import CoreEngine, OnStep
from worker.resample import is_equal, seed_of
from worker.stop import Stop

SPEC: dict[str, Any] = {
    "model": "tiny-arithmetic",
    "dataset": "arithmetic_r1_template",
    "split": "test",
    "num_prompts": 10,
    "prompt_seed": 5,
    "G": 3,
    "seed": 12,
    "shard_size": 4,
    "rewards": ["right", "tag_format"],
}
SOURCE = """
from jobs.gold import is_correct
from jobs.rewards import reward

@reward("right", columns=("response", "answer"))
def right(row):  # as math_answer, without the seconds that importing sympy takes
    return None if row["answer"] is None else is_correct(row["response"], row["answer"])
"""
KEPT = ("prompt_index", "sample_index", "custom_id", "response_ids", "logprobs", "reward_right")
ROUNDS = 2


@pytest.fixture(scope="module")
def engine() -> CoreEngine:
    return CoreEngine()


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings the reward."""
    metadata = tmp_path / "site" / "right_reward-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata.parent / "right_reward.py").write_text(SOURCE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: right-reward\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[seqproc.rewards]\nright = right_reward:right\n")
    monkeypatch.syspath_prepend(metadata.parent)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(Settings(home=tmp_path / "home", heartbeat_seconds=0.05)) as made:
        yield made


def run(client: Client, engine: Any, **fields: Any) -> JobHandle:
    job = client.submit(**SPEC | fields)
    Drain(client.store, client.settings, engine, "w", ["default"], Stop()).until_idle()
    assert job.refresh().state == "succeeded"
    return job


def groups(job: JobHandle) -> list[list[dict[str, Any]]]:
    """The rows of each prompt."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in job.rows():
        found.setdefault(row["prompt_index"], []).append(row)
    return [found[index] for index in sorted(found)]


def by_hand(client: Client, engine: CoreEngine) -> list[tuple[float | None, list[dict[str, Any]]]]:
    """(round, rows) of each prompt, from a whole job a round: the first whose rewards differ, or else the last."""
    jobs = [groups(run(client, engine, seed=seed_of(SPEC["seed"], number))) for number in range(ROUNDS + 1)]
    found: list[tuple[float | None, list[dict[str, Any]]]] = []
    for rounds in zip(*jobs, strict=True):
        differ = [n for n, group in enumerate(rounds) if len({row["reward_right"] for row in group}) > 1]
        found.append((float(differ[0]), rounds[differ[0]]) if differ else (None, rounds[-1]))
    return found


def test_each_prompt_has_the_first_round_whose_rewards_differ(client: Client, engine: CoreEngine) -> None:
    job = run(client, engine, resample_equal=ROUNDS)
    expected = by_hand(client, engine)
    assert {number for number, _ in expected} >= {None, 0.0, 1.0}, "a seed that shows every case"
    for group, (number, rows) in zip(groups(job), expected, strict=True):
        assert [row["resampling_round"] for row in group] == [number] * 3
        assert [[row[name] for name in KEPT] for row in group] == [[row[name] for name in KEPT] for row in rows]
    frame = job.to_pandas()
    alike = sum(number is None for number, _ in expected)
    assert int(frame["resampling_round"].isna().sum()) == 3 * alike
    entries = job.manifest()["sidecars"]
    assert sum(entry["unjudged"] for entry in entries if entry["kind"] == "resampling") == 3 * alike, "and counted"
    assert {(entry["kind"], entry["name"]) for entry in entries} == {
        ("resampling", "round"),
        ("reward", "right"),
        ("reward", "tag_format"),
    }
    assert verify(client.settings.results / "jobs" / job.id) == []


class Interrupted:
    """The engine, stopped for good in the midst of a round of resampling."""

    def __init__(self, engine: CoreEngine, stop: Stop) -> None:
        self._engine, self._stop = engine, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, job: Any, rows: Any, on_step: OnStep) -> Any:
        if job.spec["seed"] != SPEC["seed"]:
            self._stop.set()
        return self._engine.run(job, rows, on_step)


def test_a_shard_that_runs_again_gives_the_same(client: Client, engine: CoreEngine) -> None:
    whole = run(client, engine, resample_equal=ROUNDS)
    job = client.submit(**SPEC, resample_equal=ROUNDS)
    stop = Stop()
    Drain(client.store, client.settings, Interrupted(engine, stop), "w1", ["default"], stop).once()
    assert job.refresh().state == "running" and job.record.done_shards < 3
    Drain(client.store, client.settings, engine, "w2", ["default"], Stop()).until_idle()
    assert list(job.rows()) == list(whole.rows())


class OnlyOnce:
    """The engine, of which every prompt fails that is asked for a second time."""

    def __init__(self, engine: CoreEngine) -> None:
        self._engine, self.calls = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, job: Any, rows: Any, on_step: OnStep) -> Any:
        made = self._engine.run(job, rows, on_step)
        self.calls += 1
        for row in rows if self.calls > 1 else ():
            made.fail(row, "did not fit")
        return made


def test_a_prompt_that_fails_in_a_later_round_keeps_what_it_has(client: Client, engine: CoreEngine) -> None:
    plain = run(client, engine, shard_size=10)
    once = OnlyOnce(engine)
    job = run(client, once, shard_size=10, resample_equal=ROUNDS)
    assert once.calls == 1 + ROUNDS
    assert job.record.prompt_errors == 0
    assert [[row[name] for name in KEPT] for row in job.rows()] == [
        [row[name] for name in KEPT] for row in plain.rows()
    ]
    rounds = [group[0]["resampling_round"] for group in groups(job)]
    equal = [len({row["reward_right"] for row in group}) == 1 for group in groups(plain)]
    assert rounds == [None if same else 0.0 for same in equal]


def test_a_reward_that_cannot_be_run_resamples_nothing(
    client: Client, engine: CoreEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(client, engine)
    job = client.submit(**SPEC, resample_equal=ROUNDS)
    monkeypatch.setattr("jobs.rewards.judge.unknown", lambda name: f"there is no reward {name!r}")
    Drain(client.store, client.settings, engine, "w", ["default"], Stop()).until_idle()
    assert job.refresh().state == "succeeded"
    rows = list(job.rows())
    assert [row["response_ids"] for row in rows] == [row["response_ids"] for row in plain.rows()]
    assert {row["resampling_round"] for row in rows} == {None}
    assert job.manifest()["sidecars"] == []


def test_prompts_without_a_gold_answer_are_not_sampled_again(client: Client, engine: CoreEngine) -> None:
    once = OnlyOnce(engine)
    fields = {"dataset": None, "split": "train", "num_prompts": None, "prompt_seed": None, "prompts": ["2+3="]}
    job = run(client, once, resample_equal=5, **fields)
    assert once.calls == 1
    assert [(row["reward_right"], row["resampling_round"]) for row in job.rows()] == [(None, 0.0)] * 3


@pytest.mark.parametrize(
    ("rewards", "equal"),
    [([1.0, 1.0], True), ([0.0, 1.0], False), ([None, 1.0, 1.0], True), ([None, None], False), ([1.0], True)],
)
def test_what_is_equal(rewards: list[float | None], equal: bool) -> None:
    assert is_equal(rewards) == equal


def test_seeds_of_rounds() -> None:
    seeds = {seed_of(seed, number) for seed in (0, 1, 2**63 - 1) for number in range(100)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(7, 0) == 7


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rewards": []}, "resample_equal needs kind generate and a reward"),
        ({"G": 1}, "responses that can differ"),
        ({"temperature": 0}, "responses that can differ"),
        ({"do_sample": False}, "responses that can differ"),
        ({"resample_equal": -1}, "resample_equal: input should be greater than or equal to 0"),
    ],
)
def test_the_spec(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        JobSpec.parse(SPEC | {"resample_equal": 1} | fields)
    assert JobSpec.parse(SPEC).digest() != JobSpec.parse(SPEC | {"resample_equal": 1}).digest()
