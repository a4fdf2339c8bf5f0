"""No name that a user chooses becomes a path: files are made under the job's folder and where `fetch` was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import Client
from jobs.cli.app import app
from jobs.errors import SpecError, UsageError
from tests.cli.conftest import do_shard, row

HOSTILE = ["../../escaped", "/tmp/escaped", "..", "a/../../b", "~/escaped", "%2e%2e%2f", "..\\..\\escaped", "con\n.txt"]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Client() as client:
        yield client


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_hostile_names_make_no_paths(tmp_path: Path, client: Client) -> None:
    """Name, labels, key, owner's custom_ids: all at once, through submit, a worker's files and fetch."""
    before = files(tmp_path)
    spec = {"model": "tiny-arithmetic", "G": 1, "seed": 1, "shard_size": 100, "queue": "default"}
    prompts = [{"prompt": "x", "custom_id": text} for text in HOSTILE]
    job = client.submit(
        prompts=prompts, name=HOSTILE[0], labels={text: text for text in HOSTILE}, idempotency_key=HOSTILE[1], **spec
    )
    errors = [{"prompt_index": 1, "sample_index": None, "custom_id": HOSTILE[1], "error": HOSTILE[0]}]
    do_shard(client, job.id, [row(i, 0, custom_id=text) for i, text in enumerate(HOSTILE) if i != 1], errors)
    done = CliRunner().invoke(app, ["fetch", HOSTILE[0], "-o", "out", "--format", "jsonl"])
    assert done.exit_code == 0, done.output
    allowed = re.compile(
        r"here/out/(sequences\.jsonl|errors\.jsonl|manifest\.json|spec\.json)"
        rf"|home/results/(STORE_ID|jobs/{job.id}/(spec\.json|manifest\.json|(prompts|shards|errors)/[a-z0-9.-]+))"
        r"|home/seqproc\.db(-wal|-shm)?"
    )
    assert [name for name in files(tmp_path) - before if not allowed.fullmatch(name)] == []
    lines = [json.loads(line) for line in (tmp_path / "here/out/sequences.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [HOSTILE[0], *HOSTILE[2:]], "as they were given"


@pytest.mark.parametrize("name", [*HOSTILE, ".", "*", "%"])
def test_a_hostile_job_id_finds_no_job(tmp_path: Path, client: Client, name: str) -> None:
    client.submit(model="tiny-arithmetic", prompts=["x"])
    before = files(tmp_path)
    with pytest.raises(UsageError):
        client.get(name)
    for command in (["status"], ["cancel"], ["logs"], ["fetch", "-o", "out"]):
        assert CliRunner().invoke(app, [command[0], *command[1:], "--", name]).exit_code == 2
    assert files(tmp_path) <= before | {"home/seqproc.db-wal", "home/seqproc.db-shm"}


def test_a_hostile_dataset_or_split_opens_no_file(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    (data / "gsm8k").mkdir(parents=True)
    line = json.dumps({"question": "secret", "answer": "#### 1"})
    (tmp_path / "secret.jsonl").write_text(line)
    monkeypatch.setenv("SEQPROC_DATA_DIR", str(data))
    for dataset, split in (("gsm8k_r1_template", "../../secret"), ("../../secret", "train"), ("os.path", "train")):
        with pytest.raises(SpecError, match=r"has no split|Unknown dataset"):
            client.submit(model="tiny-arithmetic", dataset=dataset, split=split, num_prompts=1)
    assert client.jobs() == []


@pytest.mark.parametrize("queue", [name for name in HOSTILE if name != ".."])
def test_a_hostile_queue_is_refused(client: Client, queue: str) -> None:
    with pytest.raises(SpecError, match="queue"):
        client.submit(model="tiny-arithmetic", prompts=["x"], queue=queue)
