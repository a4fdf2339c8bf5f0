"""Train a LoRA adapter over `tiny-arithmetic` and keep three checkpoints of it, to have something to compare.

    python examples/train_lora.py FOLDER      # writes FOLDER/step-2, step-4 and step-8, in some seconds

The model slips now and then (see its README). The adapter learns from demonstrations that do not.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from rlp_datasets.arithmetic import training_problems
from rlp_datasets.template import r1_prompt, r1_response
from sequence_processing import load_model

CHECKPOINTS = (2, 4, 8)  # steps
BATCH = 32  # problems a step
LEARNING_RATE = 1e-3


def train(folder: Path) -> None:
    torch.manual_seed(0)
    base, tokenizer = load_model("tiny-arithmetic")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    problems = training_problems(seed=1)
    for step in range(1, CHECKPOINTS[-1] + 1):
        prompts, texts = [], []
        for problem in islice(problems, BATCH):
            reasoning, answer = problem.reasoning()
            prompts.append(r1_prompt(problem.question))
            texts.append(prompts[-1] + r1_response(reasoning, str(answer)) + tokenizer.eos_token)
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, prompt in zip(labels, prompts, strict=True):
            row[: len(tokenizer(prompt)["input_ids"])] = -100  # the loss is on the response only
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in CHECKPOINTS:
            model.save_pretrained(folder / f"step-{step}")
            print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
