"""How much memory a job's every way in and out takes, at a tenth of the size and at all of it: it must not grow.

python -m benchmarks.memory [--sequences 1000000]

Each step runs in a fresh process on one home: prompts from a file and as a stream, rows written as a worker writes them
(no model: their values do not matter), and every reader that promises to hold little. A table of peak resident memory
and seconds, and as the last line of stdout one JSON object. Exit code 1 if a step's memory grew by more than `GROWTH`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs import Client
from jobs.export import export
from jobs.paths import JobPaths
from jobs.settings import Settings
from jobs.shard_files import write_attempt
from jobs.snapshot import SnapshotRow, read_rows
from jobs.spec import JobSpec
from jobs.store import Store

GROWTH = 150  # MB that ten times the sequences may take more: names of prompts and the list of shards do grow
TOKENS = 16  # a sequence
SPEC: dict[str, Any] = {"model": "tiny-arithmetic", "G": 1, "seed": 1, "shard_size": 500}


def file(client: Client, folder: Path, size: int) -> None:
    """`submit FILE`, every line checked; the job is cancelled, the stream's is the one that is run."""
    lines = folder / "prompts.jsonl"
    with lines.open("w") as out:
        out.writelines(json.dumps({"prompt": text}) + "\n" for text in _prompts(size))
    client.submit(JobSpec.parse(SPEC | {"file": str(lines), "name": "file"})).cancel()


def feed(client: Client, folder: Path, size: int) -> None:
    """`submit - --stream`, as fast as it goes."""
    with client.feed(**SPEC, name="fed") as fed:
        for text in _prompts(size):
            fed.add(text)
    assert fed.job.record.num_prompts == size


def write(client: Client, folder: Path, size: int) -> None:
    """Every shard, as a worker claims, writes and commits it."""
    store, settings = client.store, client.settings
    while (claim := store.claim("hand", queues=["default"], model=None, age_limit=None)) is not None:
        shard, paths = claim.shard, JobPaths(settings.results, claim.job.id)
        rows = [_row(prompt) for prompt in read_rows(paths, shard.segment, shard.start, shard.stop)]
        assert store.commit(claim, write_attempt(paths, shard, rows, [], {"device": "none"}))


def stream(client: Client, folder: Path, size: int) -> None:
    """`job.stream()` to its end."""
    assert sum(1 for _ in client.get("fed").stream()) == size


def rows(client: Client, folder: Path, size: int) -> None:
    """`job.rows()`."""
    assert sum(1 for _ in client.get("fed").rows()) == size


def parquet(client: Client, folder: Path, size: int) -> None:
    """`fetch --format parquet`."""
    export(client.get("fed").results, folder / "parquet", "parquet")


def jsonl(client: Client, folder: Path, size: int) -> None:
    """`fetch --format jsonl`."""
    export(client.get("fed").results, folder / "jsonl", "jsonl")


STEPS: dict[str, Callable[[Client, Path, int], None]] = {
    step.__name__: step for step in (file, feed, write, stream, rows, parquet, jsonl)
}


def _prompts(size: int) -> Iterator[str]:
    return (f"What is {number} + {number % 97}?" for number in range(size))


def _row(prompt: SnapshotRow) -> dict[str, Any]:
    values = np.linspace(-2, 0, TOKENS, dtype=np.float32) * (1 + prompt.prompt_index % 7)
    kept = {name: getattr(prompt, name) for name in ("prompt_index", "custom_id", "prompt", "answer")}
    measured = dict.fromkeys(("logprobs", "entropies", "sampling_logprobs", "sampling_entropies"), values)
    ids = {"prompt_ids": list(range(12)), "response_ids": list(range(TOKENS)), "token_ends": list(range(TOKENS))}
    ends = {"response": "x" * TOKENS, "finish_reason": "eos", "stop_offset": None}
    return {**kept, **measured, **ids, **ends, "sample_index": 0}


def measure(step: str, folder: Path, size: int) -> dict[str, float]:
    """One step in a process of its own: peak resident MB, and seconds."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--step",
        step,
        "--home",
        str(folder),
        "--sequences",
        str(size),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_step(step: str, folder: Path, size: int) -> dict[str, float]:
    began = time.monotonic()
    with Client(Settings(home=folder / "home")) as client:
        STEPS[step](client, folder, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"mb": round(peak, 1), "seconds": round(time.monotonic() - began, 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.step:
        print(json.dumps(run_step(asked.step, asked.home, asked.sequences)))
        return 0
    report: dict[str, dict[int, dict[str, float]]] = {step: {} for step in STEPS}
    for size in (asked.sequences // 10, asked.sequences):
        with tempfile.TemporaryDirectory() as folder:
            Store.open(Settings(home=Path(folder) / "home")).close()
            for step in STEPS:
                report[step][size] = found = measure(step, Path(folder), size)
                print(f"{step:8} {size:>9,} sequences {found['mb']:7.1f} MB {found['seconds']:7.1f} s", flush=True)
    grown = {step: max(by.values(), key=_mb)["mb"] - min(by.values(), key=_mb)["mb"] for step, by in report.items()}
    print(json.dumps({"sequences": asked.sequences, "tokens": TOKENS, "steps": report, "grown_mb": grown}))
    return int(max(grown.values()) > GROWTH)


def _mb(found: dict[str, float]) -> float:
    return found["mb"]


if __name__ == "__main__":
    sys.exit(main())
