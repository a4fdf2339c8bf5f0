"""The worker that a waiting client starts: real processes, and what the waiting one hears of their fate."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import Client
from jobs.errors import SeqprocError
from jobs.settings import Settings


def test_it_works_with_exactly_the_clients_settings(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", results_dir=tmp_path / "elsewhere")
    with Client(settings) as client:
        job = client.submit(model="tiny-arithmetic", prompts=["2+3="], G=2, seed=1, max_new_tokens=4)
        progress = job.wait(timeout=120)
        assert (progress.state, progress.sequences) == ("succeeded", 2)
        assert len(list((tmp_path / "elsewhere" / "jobs" / job.id / "shards").iterdir())) == 1
        assert [line["message"] for line in job.logs()][-1] == f"shard 0 done: 2 sequences, {progress.tokens} tokens"


def test_a_model_that_cannot_be_had_here_is_said_to_the_one_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Client(Settings(home=tmp_path / "home")) as client:
        job = client.submit(model="nobody/never-was", prompts=["a"])
        with pytest.raises(SeqprocError, match=r"cannot go on: .*nobody/never-was"):
            job.wait(timeout=120)
        record = job.refresh()
        assert (record.pending_shards, record.running_shards) == (1, 0)
        assert all(shard.failures == 0 for shard in client.store.shards(job.id))


def test_a_results_folder_of_another_database_is_said_to_the_one_who_waits(tmp_path: Path) -> None:
    with Client(Settings(home=tmp_path / "home")) as client:
        job = client.submit(model="tiny-arithmetic", prompts=["a"])
        (client.settings.results / "STORE_ID").write_text("another\n")
        with pytest.raises(SeqprocError, match="belongs to another database"):
            job.wait(timeout=120)
        assert client.store.attempts(job.id) == [], "it claims nothing"
