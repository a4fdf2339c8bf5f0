"""The command as a person has it: its own process, a child worker, the real model; in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pexpect

from jobs.client import Client

_SUBMIT = [
    *("-m", "jobs", "submit", "--model", "tiny-arithmetic", "--dataset", "arithmetic_r1_template", "--split", "test"),
    *("--num-prompts", "4", "-G", "2", "--seed", "1", "--max-new-tokens", "64", "--shard-size", "2"),
]


def test_submit_in_a_pipe(client: Client) -> None:
    done = subprocess.run([sys.executable, *_SUBMIT, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["done_sequences"]) == ("succeeded", 8)
    assert f"Job {job['id']} succeeded: 8 of 8 sequences" in done.stderr
    sequences, logprobs = client.get(job["id"]).to_batched()
    assert sequences.sequences.shape[:2] == (4, 2)
    lengths = [[len(values) for values in row] for row in logprobs.logprobs]
    assert lengths == sequences.gen_lens


def test_ctrl_c_in_a_terminal_leaves_the_child_working(client: Client) -> None:
    environment: dict[str, str] = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    terminal = pexpect.spawn(sys.executable, [*_SUBMIT, "--local"], env=environment, encoding="utf-8", timeout=120)
    terminal.expect(r"Submitted: 4 prompts × 2 = 8 sequences in 2 shards")
    terminal.expect(r"\b([0-9a-f]{12})\r\n")
    job = terminal.match.group(1)
    terminal.expect(r"━.* 0/8 sequences")
    while not client.store.workers():  # the child is at work
        terminal.expect("sequences")
    terminal.sendintr()
    terminal.expect(f"The job goes on. Watch it: seqproc watch {job}")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert client.get(job).wait(timeout=120, start_worker=False).state == "succeeded"
