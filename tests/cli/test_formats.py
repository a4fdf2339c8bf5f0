"""A real job's rollouts in TRL's own trainer, and the forms that `fetch` writes, as a person asks for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.client import Client
from tests.cli.conftest import Run

_G, _TEMPERATURE = 4, 0.7


@pytest.mark.parametrize("form", ["openai", "trl"])
def test_fetch_as(seqproc: Run, finished: str, tmp_path: Path, form: str) -> None:
    result = seqproc("fetch", finished, "-o", str(tmp_path / "out"), "--format", form)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == str(tmp_path / "out" / f"{form}.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out" / f"{form}.jsonl").open()]
    assert len(lines) == {"openai": 3, "trl": 4}[form]


def test_fetch_as_something_else(seqproc: Run, finished: str) -> None:
    result = seqproc("fetch", finished, "-o", "out", "--format", "xlsx")
    assert result.exit_code == 2
    assert "'openai'" in result.stderr and "'trl'" in result.stderr
    assert not Path("out").exists()


def test_trl_scores_our_rollouts_as_we_did(client: Client, tmp_path: Path) -> None:
    """GRPOTrainer's own forward pass gives the log-probabilities that we hand it as the sampling distribution's."""
    prompts = ["What is 2 + 3?", "Tom has 4 apples and buys 5 more. How many?"]
    command = ["-m", "jobs", "submit", "-q", "--model", "tiny-arithmetic", "-G", str(_G), "--seed", "1"]
    command += ["--temperature", str(_TEMPERATURE), "--max-new-tokens", "24"]
    command += [word for prompt in prompts for word in ("--prompts", prompt)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job = client.get(done.stdout.strip())
    trainer = _trainer(tmp_path, lambda _prompts, _trainer: next(job.to_trl()))
    inputs = [{"prompt": prompt} for prompt in prompts for _ in range(_G)]
    scored = trainer._generate_and_score_completions(inputs)
    mask = scored["completion_mask"].bool()
    assert int(mask.sum()) == sum(len(row["response_ids"]) for row in job.rows()) > 0
    theirs = _their_logprobs(trainer, scored)
    ours = scored["sampling_per_token_logps"]
    assert float((theirs - ours)[mask].abs().max()) < 1e-4


def _trainer(folder: Path, rollout_func: Any) -> Any:
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    from sequence_processing import load_model

    model, tokenizer = load_model("tiny-arithmetic")
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=2 * _G,
            num_generations=_G,
            max_completion_length=64,
            temperature=_TEMPERATURE,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["unused"]}),
        rollout_func=rollout_func,
    )


def _their_logprobs(trainer: Any, scored: dict[str, Any]) -> Any:
    import torch

    ids = torch.cat([scored["prompt_ids"], scored["completion_ids"]], dim=1)
    mask = torch.cat([scored["prompt_mask"], scored["completion_mask"]], dim=1)
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, scored["completion_ids"].size(1))
    return found[0]
