"""GRPO on measured rollouts: a job samples and judges, a loss reads what it measured, a step, and the next job.

    python examples/grpo.py FOLDER [STEPS]    # the policy, a LoRA adapter over tiny-arithmetic, is kept in FOLDER

Each step is one update batch: distinct prompts, G responses each, and groups that are rewarded alike sampled again,
for they have no advantage. The loss is that of Shao et al. 2024 (arXiv:2402.03300), without its KL term: advantages
within a group, and a ratio clipped against the log-probabilities of the distribution that was sampled from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from jobs import Client
from jobs.client import JobHandle
from sequence_processing import SequenceProcessor, load_model

PROMPTS, G, CLIP, LEARNING_RATE = 24, 8, 0.2, 2e-3


def rollouts(client: Client, policy: Path, step: int) -> JobHandle:
    """An update batch under the policy as it is in its folder."""
    job = client.submit(
        model="tiny-arithmetic",
        adapter=str(policy),
        dataset="arithmetic_r1_template",
        num_prompts=PROMPTS,
        G=G,
        seed=step,
        rewards=["math_answer"],
        resample_equal=2,
        name=f"grpo-{step}",
    )
    job.wait()
    return job


def evaluate(client: Client, policy: Path) -> None:
    """Mean reward of an i.i.d. batch: prompts drawn with replacement from the test split, one response to each."""
    job = client.submit(
        model="tiny-arithmetic",
        adapter=str(policy),
        dataset="arithmetic_r1_template",
        split="test",
        num_prompts=400,
        replacement=True,
        shard_size=100,
        seed=0,
        rewards=["math_answer"],
        name=f"evaluation-{policy.name}",
    )
    job.wait()
    rewards = job.to_pandas()["reward_math_answer"]
    print(f"{policy.name} on test: mean reward {rewards.mean():.3f} ± {rewards.sem():.3f}", flush=True)


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """[B, G] rewards → [B, G]: how far each lies from its group's mean, in the group's standard deviations."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)


def loss_of(new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """Clipped surrogate loss of one response: `new` carries the graph, `old` is log q when it was sampled; [tokens]."""
    ratio = torch.exp(new - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()


def update(processor: SequenceProcessor, optimizer: torch.optim.Optimizer, job: JobHandle) -> None:
    """One gradient step on all of a job's sequences."""
    sequences, sampled = job.to_batched()
    rewards = torch.tensor(job.to_pandas()["reward_math_answer"].to_numpy()).float().view(-1, G)
    advantage = advantages(rewards)
    measured = processor.teacher_force_logprobs(sequences, with_grad=True)
    losses = [
        loss_of(measured.logprobs[b][g], sampled.sampling_logprobs[b][g], advantage[b, g])
        for b in range(len(rewards))
        for g in range(G)
    ]
    torch.stack(losses).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def main(folder: Path, steps: int) -> None:
    torch.manual_seed(0)
    base, tokenizer = load_model("tiny-arithmetic")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    processor = SequenceProcessor(model, tokenizer)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    with Client() as client:
        for step in range(steps + 1):
            policy = folder / f"step-{step}"
            model.save_pretrained(policy)
            if step in (0, steps):
                evaluate(client, policy)
            if step < steps:
                job = rollouts(client, policy, step)
                alike = job.to_pandas()["resampling_round"].isna().sum() // G
                update(processor, optimizer, job)
                print(f"step {step + 1}: {PROMPTS - alike} of {PROMPTS} groups had something to teach", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
